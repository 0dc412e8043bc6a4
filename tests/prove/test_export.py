"""Models elsewhere: in plain Keras, and exported by ``python export.py MODEL``."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import export
from repository import Repository, tiny_params
from stages.shared.files import MODELS, PREPARED, read_json
from stages.shared.tasks import read_task
from tiny import tiny_arrays

EXPORTED = MODELS / "export"
ONNX = ["--onnx"] if find_spec("tf2onnx") else []  # an extra of pyproject.toml
PLAIN_KERAS = """
import json, sys
sys.modules["stages"] = None  # importing it fails
import keras, numpy as np
arrays, model = np.load(sys.argv[1]), keras.models.load_model(sys.argv[2])
print(json.dumps(model.evaluate(arrays["x_test"], arrays["y_test"], verbose=0)))
"""


@pytest.fixture(scope="module", params=["colour", "grey in 16 bits"])
def trained(request, tmp_path_factory):
    """Train `pretrain` in a repository; return its folder."""
    params, arrays = tiny_params(), tiny_arrays()
    if request.param != "colour":
        params["precision"] = "mixed_bfloat16"
        arrays |= {key: arrays[key][..., :1] for key in ("x_train", "x_test")}
    params["model"]["rescale"] = True
    params["pretrain"] |= {"epochs": 16, "optimizer": "adam", "learning_rate": 0.01}
    repo = Repository(tmp_path_factory.mktemp("export"), params)
    np.savez(repo.path / "data/raw/tiny.npz", **arrays)
    repo.dvc("repro", "pretrain")
    return repo.path


@pytest.fixture
def run(trained, monkeypatch):
    """Run ``python export.py models/pretrain.keras ...`` in the repository, in this process."""
    monkeypatch.chdir(trained)

    def run(*arguments: str, model: str = "models/pretrain.keras") -> None:
        monkeypatch.setattr(sys, "argv", ["export.py", model, *arguments])
        export.main()

    return run


def test_model_opens_in_plain_keras_and_has_the_recorded_accuracy(trained):
    files = [str(trained / name) for name in ("data/prepared/source.npz", "models/pretrain.keras")]
    command = [sys.executable, "-W", "error::UserWarning", "-c", PLAIN_KERAS, *files]
    result = subprocess.run(command, cwd="/", env={}, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    record = read_json(trained / "reports/pretrain/record.json")
    assert json.loads(result.stdout) == pytest.approx([record["test_loss"], record["test_accuracy"]], rel=1e-3)


def test_exported_files_predict_the_same_as_the_model(run, capsys):
    older = EXPORTED / "pretrain/older.pb"
    older.parent.mkdir(parents=True)
    older.touch()
    run(*ONNX)
    assert not older.exists()
    assert len(list(EXPORTED.iterdir())) == 2 + len(ONNX)
    x, y = read_task("source").test.x.astype(np.float32), read_task("source").test.y
    model = export.keras.models.load_model(MODELS / "pretrain.keras")
    served = tf.saved_model.load(EXPORTED / "pretrain")
    predicted = {
        "Keras": model.predict(x, verbose=0),
        "LiteRT": Interpreter(str(EXPORTED / "pretrain.tflite")).get_signature_runner()(image=x)["output_0"],
        "SavedModel": served.serve(x).numpy(),
    }
    if ONNX:
        import onnxruntime

        (predicted["ONNX"],) = onnxruntime.InferenceSession(EXPORTED / "pretrain.onnx").run(None, {"image": x})
    tolerance = 1e-5 if x.shape[-1] == 3 else 0.05
    assert all(p == pytest.approx(predicted["Keras"], abs=tolerance) for p in predicted.values())
    accuracy = {name: (p.argmax(axis=1) == y).mean() for name, p in predicted.items()}
    assert accuracy["Keras"] > 0.8
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {row[1]: row[5] for row in rows[2:]} == {name: f"{share:.4f}" for name, share in accuracy.items()}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"side_effect": ValueError("not\nthese")}, "pretrain.tflite: not exported, or does not run: not these"),
        ({"return_value": np.eye(2)[[0] * 20]}, "models/pretrain.keras: LiteRT: test accuracy: expected the model's"),
    ],
)
def test_files_that_fail_or_predict_something_else_are_not_kept(run, monkeypatch, failure, message):
    monkeypatch.setattr(export, "_load_exported", lambda *_: Mock(**failure))
    before = sorted(EXPORTED.iterdir())
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        run()
    assert sorted(EXPORTED.iterdir()) == before


def test_a_copy_under_another_name_is_compared_on_the_images_of_its_classes(run, capsys):
    shutil.copy(MODELS / "pretrain.keras", "my.keras")
    run(model="my.keras")
    record = read_json(MODELS.parent / "reports/pretrain/record.json")
    assert f"comparing on the 20 test images of {PREPARED}/source.npz" in (shown := capsys.readouterr().out)
    assert f"{record['test_accuracy']:.4f}" in shown


def test_a_terminated_export_leaves_nothing(run, monkeypatch):
    before = sorted(EXPORTED.iterdir())
    monkeypatch.setattr(export, "_export_and_compare", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    default = signal.signal(signal.SIGTERM, lambda *_: None)
    with pytest.raises(SystemExit, match="130"):
        run()
    signal.signal(signal.SIGTERM, default)
    assert sorted(EXPORTED.iterdir()) == before


def test_missing_packages_other_images_and_damaged_models_are_refused_in_one_line(run, monkeypatch):
    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
            run(*arguments)

    source, model = PREPARED / "source.npz", MODELS / "pretrain.keras"
    message = (
        rf"{PREPARED}: no such test images, expected some \(8, 8, \d\) of 2 classes[^\n]*`dvc repro`, or `dvc pull`"
    )
    np.savez(source, **(dict(np.load(source)) | {"x_test": np.zeros((20, 9, 8, 3), np.uint8)}))
    refused(message)
    source.unlink()
    refused(message)
    model.write_bytes(model.read_bytes()[:-1])
    refused(r"models/pretrain\.keras: no model that Keras [^\n]* can load: [^\n]*dvc repro")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    refused(
        r"--onnx: onnx, onnxruntime, tf2onnx: missing, [^\n]*-m pip install --require-hashes -r requirements-onnx.txt",
        "--onnx",
    )
