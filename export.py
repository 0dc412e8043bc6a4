"""Export a trained model, and compare the exported files with it on the test images: ``python export.py MODEL``.

Writes LiteRT in three sizes, SavedModel and, with ``--onnx``, ONNX to ``models/export/MODEL/``, and a model card. Each
maps `image`, float32 (N, H, W, C), raw 0-255, to `probabilities`, float32 (N, classes), like the model.
"""

import stages.training  # noqa: F401, first: it checks that the packages are installed, and configures Keras

# isort: split
import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import yaml
from ai_edge_litert.interpreter import Interpreter
from jinja2 import Environment, StrictUndefined
from tqdm import tqdm

from stages.reporting.statistics import accuracy_interval
from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import MODELS, PREPARED, REPORTS, read_json, sha256, stage_folder
from stages.shared.program import program
from stages.shared.tasks import Split, Task, read_task
from stages.shared.yaml_files import parse_yaml
from stages.training.input_pipeline import evaluation_batch_size
from stages.training.model_files import Trained, load_trained

EXPORTED = MODELS / "export"
CARD = Path(__file__).with_name("tools") / "model_card.jinja"
FORMATS = {"model.tflite": "litert", "model_float16.tflite": "litert", "model_int8.tflite": "litert"}
FORMATS |= {"saved_model": "tf_saved_model", "model.onnx": "onnx"}  # Keras's names
Predict = Callable[[np.ndarray], np.ndarray]  # images, float32 (N, H, W, C), to probabilities (N, classes)


@program
def main() -> None:
    """Export the model, and keep the files that are as accurate as the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("model", type=Path, nargs="?", default=MODELS / "finetune_fc.keras", help="(%(default)s)")
    parser.add_argument("--onnx", action="store_true", help="also write ONNX")
    args = parser.parse_args()
    if args.onnx and (missing := [name for name in ("onnx", "onnxruntime", "tf2onnx") if not find_spec(name)]):
        install = f"{sys.executable} -m pip install --require-hashes -r requirements-onnx.txt"
        raise UserError(f"--onnx: {', '.join(missing)}: missing, expected the extra `onnx`; type {install}")
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # as in the other runtimes below
    trained = load_trained(args.model)
    task = _read_task(trained, args.model)
    warnings.simplefilter("ignore")  # Keras uses deprecated parts of TensorFlow
    EXPORTED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=EXPORTED) as temporary:
        folder, final = Path(temporary) / "export", EXPORTED / args.model.stem
        folder.mkdir()
        shutil.copyfile(args.model, folder / "model.keras")
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in trained.class_names), encoding="utf-8")
        files = [file for file, kind in FORMATS.items() if args.onnx or kind != "onnx"]
        table = _export_and_compare(trained, task, folder, files)
        print(shown := table.to_markdown(index=False, floatfmt=("", ".1f", ".4f", "", ".4f", ".1e", ".3f")))
        table.to_csv(folder / "comparison.csv", index=False)
        allowed = [max(0.02 if "int8" in file else 0.005, 1.5 / len(task.test.y)) for file in table["file"]]
        bad = table[table["test accuracy"].iloc[0] - table["test accuracy"] > allowed]  # 1.5: rounding may change one
        for file in (folder / name for name in bad["file"]):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        template = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined).from_string
        known = {"model": args.model, "trained": trained, "task": task, "run": _read_run(args.model), "shown": shown}
        known |= {"rows": table.to_dict("records"), "files": [file.name for file in folder.iterdir()]}
        card = template(CARD.read_text()).render(known, sha256=sha256(args.model.read_bytes()))
        (folder / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        print("written:", folder.replace(final))
    if len(bad):
        expected = "expected the model's less 0.005 at most, of 8-bit integers less 0.02"
        raise UserError(f"{args.model}: test accuracy of {', '.join(bad['file'])}: {expected}; not written")


def _read_task(trained: Trained, path: Path) -> Task:
    """Read the task that has the model's classes; raises `UserError` if there is none.

    If both tasks have them, ``pretrain.keras`` gets the source's and other models the target's.
    """
    classes, shape = trained.class_names, trained.model.input_shape[1:]
    for side in ("source", "target") if path.stem == "pretrain" else ("target", "source"):
        task = read_task(side) if (PREPARED / f"{side}.npz").exists() else None
        if task and task.class_names == classes and task.test.x.shape[1:] == shape:
            print(f"comparing on the {len(task.test.y)} test images of {PREPARED / side}.npz")
            return task
    expected = f"expected some {shape} of {len(classes)} classes, {short_repr(classes)}, as the model takes"
    raise UserError(f"{PREPARED}: no such test images, {expected}; type `dvc repro`, or `dvc pull` to fetch them")


def _read_run(model: Path) -> dict[str, Any] | None:
    """Read settings and scores of the last run; None if it is not the one that trained the model."""
    md5 = hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest()
    try:
        lock = parse_yaml(Path("dvc.lock").read_text())["stages"]
        stage = next(name for name in lock if any(out["md5"] == md5 for out in lock[name]["outs"]))
        scores, details = (json.loads((REPORTS / f"{name}.json").read_text())[stage] for name in ("metrics", "details"))
        record = read_json(stage_folder(stage) / "record.json")
        settings = {name: lock[name]["params"]["params.yaml"] for name in ("prepare", "pretrain", stage)}
    except (OSError, ValueError, LookupError, StopIteration):
        return None
    run = {"stage": stage, "scores": scores | details, "environment": record["environment"]}
    run["settings"] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return run if scores["test_accuracy"] == record["test_accuracy"] else None


def _export_and_compare(trained: Trained, task: Task, folder: Path, files: list[str]) -> pd.DataFrame:
    """Export to a folder, and run each file on the test images: one row a file, the model's own first.

    Changes the model's precision to float32. Raises `UserError` if a file cannot be written or run.
    """
    results = [_run(trained.model.predict_on_batch, folder / "model.keras", task.test)]
    for layer in trained.model.layers:
        layer.dtype_policy = "float32"  # LiteRT and ONNX's runtime do not compute in bfloat16
        if isinstance(layer, keras.layers.Normalization):  # tf2onnx would turn its tensors into inputs of the file
            layer.mean, layer.variance = (np.asarray(moment, np.float32) for moment in (layer.mean, layer.variance))
    model = keras.Model(trained.model.inputs[0], {"probabilities": trained.model.outputs[0]})
    some = np.linspace(0, len(task.train.y) - 1, 500).astype(int)  # for the ranges of 8-bit integers
    images = task.train.x[some].astype(np.float32)[:, None]
    smaller = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    options: dict[str, dict[str, Any]] = {
        "model_float16.tflite": smaller | {"target_spec": {"supported_types": [tf.float16]}},
        "model_int8.tflite": smaller | {"representative_dataset": lambda: ({"image": image} for image in images)},
    }
    for file in files:
        try:
            model.export(folder / file, format=FORMATS[file], verbose=False, **options.get(file, {}))
            if file.endswith(".tflite"):
                with zipfile.ZipFile(folder / file, "a") as archive:  # at the end, where readers look for it
                    archive.writestr(zipfile.ZipInfo("labels.txt"), (folder / "labels.txt").read_bytes())
            elif file.endswith(".onnx"):
                import onnx

                onnx_model = onnx.load(folder / file)
                onnx.helper.set_model_props(onnx_model, {"class_names": json.dumps(trained.class_names)})
                onnx.save(onnx_model, folder / file)
            results.append(_run(_load_exported(folder / file), folder / file, task.test, results[0][1]))
        except Exception as error:  # converters and runtimes raise nearly anything
            raise UserError(f"{file}: not exported, or does not run: {one_line(error)}") from None
    return pd.DataFrame([row for row, _ in results])


def _load_exported(file: Path) -> Predict:
    """Load an exported file with the runtime of its format, on one thread."""
    if file.suffix == ".tflite":
        lite = Interpreter(str(file), num_threads=1).get_signature_runner()
        return lambda images: lite(image=images)["probabilities"]
    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options)
        return lambda images: session.run(["probabilities"], {"image": images})[0]
    served = tf.saved_model.load(file).signatures["serving_default"]
    return lambda images: served(image=tf.constant(images))["probabilities"].numpy()


def _run(predict: Predict, file: Path, test: Split, expected: Any = None) -> tuple[dict, np.ndarray]:
    """Predict the test images; returns a row of the table, and the probabilities, to compare others with."""
    predict(test.x[:1].astype(np.float32))  # the first call also traces or loads
    start = time.perf_counter()
    size = evaluation_batch_size(test.x.shape[1:])
    starts = tqdm(range(0, len(test.x), size), f"running {file.name}", leave=False, disable=None)
    p = np.concatenate([predict(test.x[i : i + size].astype(np.float32)) for i in starts])
    seconds = time.perf_counter() - start
    expected = p if expected is None else expected
    correct = p.argmax(axis=1) == test.y
    return {
        "file": file.name,
        "MB": sum(part.stat().st_size for part in [file, *file.rglob("*")] if part.is_file()) / 1e6,
        "test accuracy": correct.mean(),
        "95% interval": "{:.4f} to {:.4f}".format(*accuracy_interval(correct)),
        "same class": (p.argmax(axis=1) == expected.argmax(axis=1)).mean(),
        "largest difference": np.abs(p - expected).max(),
        "ms per image": 1000 * seconds / len(p),
    }, p


if __name__ == "__main__":
    main()
