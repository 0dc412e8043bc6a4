"""Models elsewhere: in plain Keras, and exported by ``python export.py MODEL``."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import export
import predict
from repository import Repository, tiny_params
from stages.shared.files import MODELS, PREPARED, read_json, sha256
from stages.shared.tasks import read_task
from stages.training.model_files import load_trained
from tiny import tiny_arrays

MODEL = MODELS / "pretrain.keras"
FOLDER = MODELS / "export/pretrain"
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
    repo.dvc("repro", *([] if request.param == "colour" else ["pretrain"]))
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


def test_exports_are_compared_with_the_model_and_described_from_the_records_of_the_run(run, trained, capsys):
    (FOLDER / "saved_model").mkdir(parents=True)
    (FOLDER / "saved_model/older.pb").touch()
    run(*ONNX)
    assert not (FOLDER / "saved_model/older.pb").exists()
    files, record = list(export.FORMATS)[: None if ONNX else -1], read_json(Path("reports/pretrain/record.json"))
    table = pd.read_csv(FOLDER / "comparison.csv", index_col="file")
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert shown[1:] == table.index.to_list() == ["model.keras", *files]
    assert table["test accuracy"]["model.keras"] == record["test_accuracy"] > 0.8
    test, model = read_task("source").test, load_trained(MODEL).model
    for file in files:
        p = export._load_exported(FOLDER / file)(test.x.astype(np.float32))
        assert p == pytest.approx(model.predict(test.x, verbose=0), abs=0.05)
        assert (p.argmax(axis=1) == test.y).mean() == table["test accuracy"][file]
    _, header, card = (FOLDER / "README.md").read_text().split("---\n", 2)
    (result,) = yaml.safe_load(header)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == record["test_accuracy"]
    whole_run = (trained / "reports/metrics.json").exists()
    told = ["epochs: 16", "| macro f1 |"] if whole_run else ["No record of this file's training"]
    assert all(text in card for text in [sha256((FOLDER / "model.keras").read_bytes()), "tiny: 40 training", *told])


def test_the_ten_lines_for_each_file_print_the_classes_of_predict(run, trained, monkeypatch, capsys):
    run(*ONNX)
    model, images = load_trained(MODEL), read_task("source").test.x[:8]
    monkeypatch.chdir(FOLDER)
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    blocks.append(blocks[1].replace("model.tflite", "model_float16.tflite"))
    for image in images.repeat(3 // images.shape[-1], axis=-1):
        turned = Image.fromarray(np.rot90(np.pad(image.repeat(9, 0).repeat(9, 1), ((0, 0), (20, 20), (0, 0)))))
        (exif := Image.Exif())[0x0112] = 6
        turned.save("photo.jpg", quality=95, exif=exif)
        _, p, _, _ = predict.classify(model, [Path("photo.jpg")], page=False)
        capsys.readouterr()
        for block in blocks:
            exec(block, {})
        names, shown = zip(*map(str.split, capsys.readouterr().out.splitlines()), strict=True)
        assert names == (model.class_names[p.argmax()],) * (4 + len(ONNX))
        assert [*map(float, shown)] == pytest.approx([p.max()] * len(names), abs=0.05)


def test_files_that_fail_or_lose_accuracy_are_not_kept(run, monkeypatch):
    load, before = export._load_exported, sorted(FOLDER.parent.rglob("*"))
    monkeypatch.setattr(export, "_load_exported", lambda file: Mock(side_effect=ValueError("not\nthese")))
    with pytest.raises(SystemExit, match=r"^error: model.tflite: not exported, or does not run: not these$"):
        run()
    assert sorted(FOLDER.parent.rglob("*")) == before
    wrong = Mock(return_value=np.eye(2)[[0] * 20])
    monkeypatch.setattr(export, "_load_exported", lambda file: wrong if "int8" in file.name else load(file))
    with pytest.raises(SystemExit, match=r"^error: [^\n]*accuracy of model_int8.tflite: expected[^\n]*; not written$"):
        run()
    assert (FOLDER / "model_float16.tflite").exists()
    assert not (FOLDER / "model_int8.tflite").exists()


def test_a_copy_under_another_name_is_compared_on_the_images_of_its_classes(run, capsys):
    shutil.copy(MODELS / "pretrain.keras", "my.keras")
    run(model="my.keras")
    assert f"comparing on the 20 test images of {PREPARED}/source.npz" in (shown := capsys.readouterr().out)
    assert f"{read_json(Path('reports/pretrain/record.json'))['test_accuracy']:.4f}" in shown


def test_missing_packages_and_images_are_refused_in_one_line(run, monkeypatch):
    def refused(message: str, *arguments: str) -> None:
        with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
            run(*arguments)

    (PREPARED / "source.npz").unlink()
    refused(rf"{PREPARED}: no such test images, expected some \(8, 8, \d\) of 2 classes[^\n]*`dvc pull`")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    install = "-m pip install --require-hashes -r requirements-onnx.txt"
    refused(rf"--onnx: onnx, onnxruntime, tf2onnx: missing, [^\n]*{install}", "--onnx")
