"""Exported files are as accurate as the model; if they cannot be, one line says so and nothing is written."""

import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import export
from stages import prepare
from stages.shared.files import MODELS
from stages.shared.halves import read_half
from stages.training import loop, model_files, network
from tiny import TINY

LEARNS = {"pretrain.epochs": 8, "pretrain.optimizer": "adam", "pretrain.learning_rate": 0.01}
needs_onnx = pytest.mark.skipif(not find_spec("tf2onnx"), reason="the extra `onnx` is not installed")


@pytest.fixture
def run(monkeypatch):
    """``python export.py <arguments>``, in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
        export.main()

    return run


@pytest.fixture
def train(params, tiny_dataset, cpu_info):
    """Train on the source classes with some settings and channels, and save under a stage's name; gives the half."""

    def train(stage, channels=3, **changes):
        np.savez(TINY["data.path"], **{k: v[..., :channels] if k[0] == "x" else v for k, v in tiny_dataset.items()})
        settings = params(**TINY | LEARNS | changes)
        prepare.main()
        half = read_half("source" if stage == "pretrain" else "target")
        loop.set_up(settings)
        model = network.build(half.train.x.shape[1:], 5, settings.model, half.train.x)
        loop.fit(model, half, settings.pretrain, stage, settings)
        model_files.save(model, MODELS / f"{stage}.keras", half.class_names)
        return half

    return train


@pytest.mark.parametrize(
    ("stage", "channels", "precision", "onnx"),
    [
        ("pretrain", 3, "float32", []),
        ("finetune_fc", 1, "mixed_bfloat16", []),
        pytest.param("pretrain", 1, "float32", ["--onnx"], marks=needs_onnx),
    ],
)
def test_exported_files_give_the_models_accuracy(run, train, capsys, stage, channels, precision, onnx):
    half = train(stage, channels, precision=precision)
    x, y = half.test.x.astype(np.float32), half.test.y
    older = MODELS / "export" / stage / "older.pb"
    older.parent.mkdir(parents=True)
    older.touch()
    capsys.readouterr()
    run(f"models/{stage}.keras", *onnx)
    assert not older.exists()
    served = tf.saved_model.load(f"models/export/{stage}")
    probabilities = {
        "Keras": keras.models.load_model(MODELS / f"{stage}.keras").predict(x, verbose=0),
        "LiteRT": Interpreter(f"models/export/{stage}.tflite").get_signature_runner()(image=x)["output_0"],
        "SavedModel": served.serve(x).numpy(),
    }
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(f"models/export/{stage}.onnx")
        (probabilities["ONNX"],) = session.run(None, {"image": x})
    for p in probabilities.values():
        assert p == pytest.approx(probabilities["Keras"], abs=1e-5 if precision == "float32" else 0.05)
    accuracy = {name: (p.argmax(axis=1) == y).mean() for name, p in probabilities.items()}
    assert accuracy["Keras"] > 0.5
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {row[1]: row[5] for row in rows[2:]} == {name: f"{share:.4f}" for name, share in accuracy.items()}
    names = {stage, f"{stage}.tflite", *([f"{stage}.onnx"] if onnx else [])}
    assert {file.name for file in (MODELS / "export").iterdir()} == names


def cut(model, file):
    if file.is_file():
        file.write_bytes(file.read_bytes()[:1000])


def turn(model, file):
    model.layers[-1].kernel.assign(-model.layers[-1].kernel)


@pytest.mark.parametrize(
    ("accident", "epochs", "says"),
    [(cut, 0, "pretrain.tflite: not exported, or does not run: "), (turn, 8, "models/pretrain.keras: SavedModel: ")],
)
def test_damaged_or_other_file_is_not_left(run, train, monkeypatch, accident, epochs, says):
    train("pretrain", **{"pretrain.epochs": epochs})
    export_well = keras.Sequential.export

    def export_badly(model, file, **options):
        export_well(model, file, **options)
        accident(model, file)

    monkeypatch.setattr(keras.Sequential, "export", export_badly)
    with pytest.raises(SystemExit, match=rf"^error: {says}[^\n]*$"):
        run("models/pretrain.keras")
    assert not list((MODELS / "export").iterdir())


def test_what_is_missing_or_another_models_is_refused_in_one_line(run, train, params, monkeypatch):
    train("pretrain", **{"pretrain.epochs": 0})
    monkeypatch.setattr(export, "find_spec", lambda name: None)

    def refused(says, *arguments):
        with pytest.raises(SystemExit, match=rf"^error: {says}[^\n]*$"):
            run("models/pretrain.keras", *arguments)

    refused(r"--onnx: onnx, onnxruntime, tf2onnx: missing, [^\n]*-m pip install --editable '\.\[onnx\]'", "--onnx")
    params(**{"data.target_classes": [5, 6], "finetune_output.head": "reset", "finetune_fc.head": "reset"})
    prepare.main()
    target = Path("data/prepared/target.npz")
    refused(rf"{target}: [^\n]*\(8, 8, 3, 2\), expected the model's, \(8, 8, 3, 5\)", "--images", "target")
    target.unlink()
    refused(rf"{target}: missing, [^\n]*`dvc repro`, or `dvc pull`", "--images", "target")
    model = MODELS / "pretrain.keras"
    model.write_bytes(model.read_bytes()[:-1])
    refused(r"models/pretrain\.keras: no model that Keras can load: ")
