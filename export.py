"""Export a trained model, and compare what was written with it on the test images: ``python export.py MODEL``.

Writes LiteRT, SavedModel and, with ``--onnx``, ONNX to ``models/export/``. Each takes `image`, float32 (N, H, W, C),
raw 0-255 like the model itself, and gives probabilities, float32 (N, classes).
"""

import stages.training  # noqa: F401, first: it refuses a Python without the packages, and sets Keras up

# isort: split
import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from stages.shared.errors import UserError, one_line
from stages.shared.files import MODELS, PREPARED
from stages.shared.halves import Side, read_half
from stages.shared.program import program
from stages.training import model_files
from stages.training.batches import evaluation_batch

FORMATS = [("LiteRT", "litert", ".tflite"), ("SavedModel", "tf_saved_model", ""), ("ONNX", "onnx", ".onnx")]
DECIMALS = {"MB": ".1f", "largest difference": ".1e", "ms per image": ".3f"}
Run = Callable[[np.ndarray], np.ndarray]  # images, float32 (N, H, W, C), to probabilities (N, classes)


@program
def main() -> None:
    """Export, compare, and leave the files in ``models/export/`` if all are as accurate as the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("model", type=Path, nargs="?", default=MODELS / "finetune_fc.keras", help="(%(default)s)")
    parser.add_argument("--onnx", action="store_true", help="write ONNX, too")
    parser.add_argument("--images", choices=("source", "target"), help="(source for pretrain.keras, target for others)")
    args = parser.parse_args()
    if args.onnx and (missing := [name for name in ("onnx", "onnxruntime", "tf2onnx") if not find_spec(name)]):
        install = f"{sys.executable} -m pip install --editable '.[onnx]'"
        raise UserError(f"--onnx: {', '.join(missing)}: missing, expected the extra `onnx`; type {install}")
    model = model_files.load(args.model)
    x, y = _test_images(model, args.images or ("source" if args.model.stem == "pretrain" else "target"))
    expected, seconds = _predict(model.predict_on_batch, x, args.model.name)
    table = pd.DataFrame([_row("Keras", args.model, expected, expected, y, seconds)])
    for layer in _layers(model):
        layer.dtype_policy = "float32"  # LiteRT and ONNX's runtime do not compute in bfloat16
        if isinstance(layer, keras.layers.Normalization):  # of its tensors tf2onnx would make inputs of the file
            layer.mean, layer.variance = (np.asarray(of, np.float32) for of in (layer.mean, layer.variance))
    (MODELS / "export").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=MODELS / "export") as folder:
        for name, keras_name, suffix in FORMATS if args.onnx else FORMATS[:-1]:
            file = Path(folder) / f"{args.model.stem}{suffix}"
            try:
                model.export(file, format=keras_name, verbose=False)
                predicted, seconds = _predict(_runner(name, file), x, file.name)
            except Exception as error:  # converters and runtimes raise nearly anything
                raise UserError(f"{file.name}: not exported, or does not run: {one_line(error)}") from None
            table.loc[len(table)] = _row(name, file, predicted, expected, y, seconds)
        print(table.to_markdown(index=False, floatfmt=[DECIMALS.get(str(column), ".4f") for column in table]))
        off = (table["test accuracy"] - table["test accuracy"][0]).abs()
        if off.max() > max(0.005, 1.5 / len(y)):  # rounding may turn one image
            wanted = f"expected the model's within 0.005, it is off by {off.max():.4f}; nothing is written"
            raise UserError(f"{args.model}: {table['format'][off.idxmax()]}: test accuracy: {wanted}")
        for file in sorted(Path(folder).iterdir()):
            shutil.rmtree(MODELS / "export" / file.name, ignore_errors=True)  # a SavedModel is a folder
            print("written:", file.replace(MODELS / "export" / file.name))
    print(f"Each takes `image`, float32 (N, {', '.join(map(str, x.shape[1:]))}), raw 0-255")


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers, those of models among them included."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


def _test_images(model: keras.Model, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """The half's test images and labels; raises `UserError` if they are missing or not this model's."""
    path = PREPARED / f"{side}.npz"
    if not path.exists():
        raise UserError(f"{path}: missing, expected the prepared images; type `dvc repro`, or `dvc pull` to fetch them")
    half = read_half(side)
    there, wanted = (*half.test.x.shape[1:], len(half.class_names)), (*model.input_shape[1:], model.output_shape[-1])
    if there != wanted:
        raise UserError(f"{path}: height, width, channels and classes are {there}, expected the model's, {wanted}")
    return half.test.x, half.test.y


def _runner(name: str, file: Path) -> Run:
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


def _predict(run: Run, x: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """Probabilities (N, classes), and the seconds it took."""
    run(x[:1].astype(np.float32))  # what happens once is not counted
    start = time.perf_counter()
    size = evaluation_batch(x.shape[1:])
    starts = tqdm(range(0, len(x), size), f"running {name}", leave=False, disable=None)
    p = np.concatenate([run(x[i : i + size].astype(np.float32)) for i in starts])
    return p, time.perf_counter() - start


def _row(name: str, file: Path, p: np.ndarray, expected: np.ndarray, y: np.ndarray, seconds: float) -> dict:
    files = file.rglob("*") if file.is_dir() else [file]
    return {
        "format": name,
        "MB": sum(part.stat().st_size for part in files if part.is_file()) / 1e6,
        "test accuracy": (p.argmax(axis=1) == y).mean(),
        "same class": (p.argmax(axis=1) == expected.argmax(axis=1)).mean(),
        "largest difference": np.abs(p - expected).max(),
        "ms per image": 1000 * seconds / len(y),
    }


if __name__ == "__main__":
    main()
