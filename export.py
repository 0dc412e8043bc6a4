"""Export a trained model, and compare the exported files with it on the test images: ``python export.py MODEL``.

Writes LiteRT, SavedModel and, with ``--onnx``, ONNX to ``models/export/``. Like the model itself, each maps `image`,
float32 (N, H, W, C), raw 0-255, to probabilities, float32 (N, classes).
"""

import stages.training  # noqa: F401, first: it checks that the packages are installed, and configures Keras

# isort: split
import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import MODELS, PREPARED
from stages.shared.program import program
from stages.shared.tasks import Split, read_task
from stages.training import model_files
from stages.training.input_pipeline import evaluation_batch_size

EXPORTED = MODELS / "export"
FORMATS = [("LiteRT", "litert", ".tflite"), ("SavedModel", "tf_saved_model", ""), ("ONNX", "onnx", ".onnx")]
DECIMALS = {"MB": ".1f", "largest difference": ".1e", "ms per image": ".3f"}
Predict = Callable[[np.ndarray], np.ndarray]  # images, float32 (N, H, W, C), to probabilities (N, classes)


@program
def main() -> None:
    """Export the model, and keep the files in ``models/export/`` if all are as accurate as the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("model", type=Path, nargs="?", default=MODELS / "finetune_fc.keras", help="(%(default)s)")
    parser.add_argument("--onnx", action="store_true", help="also write ONNX")
    args = parser.parse_args()
    if args.onnx and (missing := [name for name in ("onnx", "onnxruntime", "tf2onnx") if not find_spec(name)]):
        install = f"{sys.executable} -m pip install --require-hashes -r requirements-onnx.txt"
        raise UserError(f"--onnx: {', '.join(missing)}: missing, expected the extra `onnx`; type {install}")
    trained = model_files.load_trained(args.model)
    test = _read_test_images(trained, args.model)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # removes the temporary folder
    EXPORTED.mkdir(parents=True, exist_ok=True)
    formats = FORMATS if args.onnx else FORMATS[:-1]
    with tempfile.TemporaryDirectory(prefix=".", dir=EXPORTED) as folder:
        table = _export_and_compare(trained.model, args.model, test, Path(folder), formats)
        print(table.to_markdown(index=False, floatfmt=[DECIMALS.get(str(column), ".4f") for column in table]))
        off = (table["test accuracy"] - table["test accuracy"][0]).abs()
        if off.max() > max(0.005, 1.5 / len(test.y)):  # rounding may change one prediction
            expected = f"expected the model's within 0.005, it is off by {off.max():.4f}; nothing is written"
            raise UserError(f"{args.model}: {table['format'][off.idxmax()]}: test accuracy: {expected}")
        for file in sorted(Path(folder).iterdir()):
            shutil.rmtree(EXPORTED / file.name, ignore_errors=True)  # a SavedModel is a folder
            print("written:", file.replace(EXPORTED / file.name))
    print(f"Each takes `image`, float32 (N, {', '.join(map(str, test.x.shape[1:]))}), raw 0-255")


def _read_test_images(trained: model_files.Trained, path: Path) -> Split:
    """Read the test images of the task that has the model's classes; raises `UserError` if there is none.

    If both tasks have them, ``pretrain.keras`` gets the source's and other models the target's.
    """
    classes, shape = trained.class_names, trained.model.input_shape[1:]
    for side in ("source", "target") if path.stem == "pretrain" else ("target", "source"):
        task = read_task(side) if (PREPARED / f"{side}.npz").exists() else None
        if task and task.class_names == classes and task.test.x.shape[1:] == shape:
            print(f"comparing on the {len(task.test.y)} test images of {PREPARED / side}.npz")
            return task.test
    expected = f"expected some {shape} of {len(classes)} classes, {short_repr(classes)}, as the model takes"
    raise UserError(f"{PREPARED}: no such test images, {expected}; type `dvc repro`, or `dvc pull` to fetch them")


def _export_and_compare(model: keras.Model, path: Path, test: Split, folder: Path, formats: list) -> pd.DataFrame:
    """Export to a folder, and run each file on the test images: one row a file, the model's own first.

    Changes the model's precision to float32. Raises `UserError` if a file cannot be written or run.
    """
    row, expected = _run(model.predict_on_batch, "Keras", path, test)
    rows = [row]
    for layer in model.layers:
        layer.dtype_policy = "float32"  # LiteRT and ONNX's runtime do not compute in bfloat16
        if isinstance(layer, keras.layers.Normalization):  # tf2onnx would turn its tensors into inputs of the file
            layer.mean, layer.variance = (np.asarray(moment, np.float32) for moment in (layer.mean, layer.variance))
    for name, keras_name, suffix in formats:
        file = folder / f"{path.stem}{suffix}"
        try:
            model.export(file, format=keras_name, verbose=False)
            row, _ = _run(_load_exported(name, file), name, file, test, expected)
        except Exception as error:  # converters and runtimes raise nearly anything
            raise UserError(f"{file.name}: not exported, or does not run: {one_line(error)}") from None
        rows.append(row)
    return pd.DataFrame(rows)


def _load_exported(name: str, file: Path) -> Predict:
    """Load an exported file with the runtime of its format."""
    if name == "LiteRT":
        from ai_edge_litert.interpreter import Interpreter

        lite = Interpreter(str(file), num_threads=os.cpu_count()).get_signature_runner()
        return lambda images: lite(image=images)["output_0"]
    if name == "ONNX":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        return lambda images: session.run(None, {"image": images})[0]
    served = tf.saved_model.load(file)
    return lambda images: served.serve(images).numpy()


def _run(predict: Predict, name: str, file: Path, test: Split, expected: Any = None) -> tuple[dict, np.ndarray]:
    """Predict the test images; returns a row of the table, and the probabilities, to compare others with."""
    predict(test.x[:1].astype(np.float32))  # the first call also traces or loads
    start = time.perf_counter()
    size = evaluation_batch_size(test.x.shape[1:])
    starts = tqdm(range(0, len(test.x), size), f"running {file.name}", leave=False, disable=None)
    p = np.concatenate([predict(test.x[i : i + size].astype(np.float32)) for i in starts])
    seconds = time.perf_counter() - start
    expected = p if expected is None else expected
    files = file.rglob("*") if file.is_dir() else [file]
    row = {
        "format": name,
        "MB": sum(part.stat().st_size for part in files if part.is_file()) / 1e6,
        "test accuracy": (p.argmax(axis=1) == test.y).mean(),
        "same class": (p.argmax(axis=1) == expected.argmax(axis=1)).mean(),
        "largest difference": np.abs(p - expected).max(),
        "ms per image": 1000 * seconds / len(p),
    }
    return row, p


if __name__ == "__main__":
    main()
