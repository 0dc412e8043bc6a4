"""`predict.py`: from a model's file and pictures to tables and a page."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import predict
from repository import ROOT
from stages.shared import npz
from stages.training import model_files
from stages.training.evaluate import evaluate_and_save
from tiny import CLASS_NAMES

NAMES = CLASS_NAMES[:5]  # of the source task
MODEL = Path("models/pretrain.keras")


@pytest.fixture
def predicted(tiny, workspace, monkeypatch, tasks, train):
    """Train and evaluate a model, and save its test images as pictures; run ``predict.py`` on them.

    Where it is `refused`, that is said in one line, and no file changes.
    """
    model, history = train(tiny, tasks["source"])
    evaluate_and_save("pretrain", model, tasks["source"], history)
    for i, (image, label) in enumerate(zip(tasks["source"].test.x, tasks["source"].test.y, strict=True)):
        folder = workspace / "photos" / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")

    def run(*arguments: str, refused: str = "") -> None:
        monkeypatch.setattr(sys, "argv", ["predict.py", str(MODEL), *arguments])
        if not refused:
            return predict.main()
        before = {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit, match=f"^error: {refused}[^\n]*$"):
            predict.main()
        assert {path: path.read_bytes() for path in workspace.rglob("*") if path.is_file()} == before

    return run


def change_metadata(class_names=NAMES, **more) -> None:
    model_files.save(model_files.load(MODEL), MODEL, class_names, **more)


def test_predictions_are_those_of_the_stage_in_every_format(predicted, capsys, monkeypatch):
    monkeypatch.setattr(predict, "MAX_SHOWN", 40)
    monkeypatch.setattr(predict, "BATCH", 30)
    for _ in range(2):  # the second time over its own files
        predicted("photos", "--top", "2", "--csv", "p.csv", "--json", "p.json", "--html", "p.html")
    table = pd.read_csv("p.csv")
    expected = pd.read_csv("reports/pretrain/predictions.csv")
    expected["image"] = [f"photos/{actual}/{i}.png" for i, actual in enumerate(expected["actual"])]
    expected = expected.sort_values("image", ignore_index=True)
    assert table["image"].equals(expected["image"])
    assert list(table) == ["image", "actual", "predicted", "probability", *(f"p: {name}" for name in NAMES)]
    assert table[["actual", "predicted"]].equals(expected[["actual", "predicted"]])
    assert np.allclose(table["probability"], expected["probability"], atol=2e-6)
    assert np.allclose(table.filter(like="p: ").sum(axis=1), 1, atol=1e-5)
    rows = [f"{image.removeprefix('photos/')},{NAMES[0]}" for image in expected["image"]]
    Path("photos/list.csv").write_text("\n".join(["path,label", *rows]))
    predicted("photos", "--csv", "listed.csv")  # where a list gives labels, these count
    assert set(pd.read_csv("listed.csv")["actual"]) == {NAMES[0]}
    record = json.loads(Path("p.json").read_text())[7]
    likely = table.filter(like="p: ").loc[7].nlargest(2)
    assert {f"p: {best['class']}": best["probability"] for best in record["classes"]} == likely.to_dict()
    right = table["actual"] == table["predicted"]
    accuracy = rf"ccuracy {right.mean():.1%} \(95% interval [\d.% to]+\): {right.sum()} of 50 pictures"
    page, shown = Path("p.html").read_text(), capsys.readouterr().out
    assert page.count('src="data:image/png;base64,') == 40
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert re.search(rf"(?s){accuracy}.*the first 40 of 50 pictures.*>{(~right[:40]).sum()} wrong</h2>", page)
    row = rf"{table['image'][7]} +{table['predicted'][7]} {table['probability'][7]:.3f}, "
    written = "written: p.csv\nwritten: p.json\nwritten: p.html\n"
    assert re.search(rf"(?s){row}.*\nand 10 more\na{accuracy}.*\n{written}", shown)


def test_pictures_are_given_as_files_patterns_or_a_list(predicted, monkeypatch):
    names = ["photos/2.png", "photos/3.png"]
    for name in names:
        next(Path("photos/ant").iterdir()).rename(name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"photos/2.png\r\nphotos/3.png\n")))
    for arguments in (["-"], names, ["photos/*.png"]):
        predicted(*arguments, "--csv", "some.csv")
        assert pd.read_csv("some.csv")["image"].to_list() == names
        assert "actual" not in pd.read_csv("some.csv")


def test_unreadable_pictures_are_listed_and_the_others_predicted(predicted, monkeypatch):
    monkeypatch.setattr(predict, "MAX_LISTED", 2)
    Path("photos/readme.txt").write_text("no picture")
    message = r"^error: 3 of 53 pictures cannot be read:\n  photos/readme.txt: .*\n  1.png: .*\n  and 1 more$"
    with pytest.raises(SystemExit, match=message):
        predicted("photos", "1.png", "2.png", "--csv", "p.csv")
    assert len(pd.read_csv("p.csv")) == 50
    predicted("missing", "--csv", "p.csv", refused="1 of 1 pictures cannot be read:\n  missing: No such file")


def test_unsure_leaves_open_what_is_below_the_threshold_of_an_accuracy(predicted, capsys):
    predicted("photos", "--unsure", "0.9", refused=r"--unsure: .*no accuracies .*data\.validation_fraction")
    predicted("photos", "--csv", "p.csv")
    sure = pd.read_csv("p.csv", keep_default_na=False)
    median = sure["probability"].median()
    curve = {"threshold": [0.0, median, 0.99], "accuracy": [0.5, 0.9, 0.95]}
    change_metadata(validation=curve | {"images": 9})
    predicted("photos", "--csv", "p.csv", "--html", "p.html", "--unsure", "0.8")
    table = pd.read_csv("p.csv", keep_default_na=False)
    assert table["predicted"].equals(sure["predicted"].where(sure["probability"] >= median, ""))
    right = (table["actual"] == table["predicted"]).sum()
    assert re.search(rf"(?s): {right} of 25 pictures.*<h2>25 unsure</h2>", Path("p.html").read_text())
    predicted("photos", "--unsure", "0.5")
    shown = capsys.readouterr().out
    assert "unsure: 0 of 50 pictures, probability below 0.000\naccuracy on 9 validation images: 50.0%\n" in shown
    predicted("photos", "--unsure", "0.97", refused="--unsure: was 0.97, expected at most 0.9500")


def test_wrong_arguments_are_refused_in_one_line_and_no_output_replaces_the_file_of_another(predicted, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    os.mkfifo("pipe")
    Path("list.csv").write_text("image,label\n")
    Path("own.HTML").write_text("<!doctype html>\n<title>Mine")
    for arguments, message in (
        ("photos --html photos/1.png", "--html: was 'photos/1.png', expected a file name that ends in .html"),
        (f"photos --csv {MODEL}", f"--csv: was '{MODEL}', expected a file name"),
        ("photos --csv list.csv", "--csv: 'list.csv' exists"), ("photos --html own.HTML", "--html: 'own.HTML' exists"),
        ("pipe", "pipe: not a regular file"), ("empty*", r"empty\*: no pictures found"), ("-", "-: no pictures found"),
        ("photos --top 0", "--top: was 0, expected"),
    ):  # fmt: skip
        predicted(*arguments.split(), refused=message)


def test_a_model_without_usable_class_names_or_of_another_keras_is_refused_in_one_line(predicted, monkeypatch):
    for names in (None, "abcde", dict.fromkeys(NAMES), NAMES[:4], [*NAMES, "fox"], [*NAMES[:4], ""], [1, 2, 3, 4, 5]):
        change_metadata(names, keras_version="3.99.0")
        predicted("photos", refused=f"{MODEL}: class_names in its metadata: was ")
    with monkeypatch.context() as patch:
        patch.setattr(model_files, "MAX_METADATA", 10)
        predicted("photos", refused=f"{MODEL}: class_names in its metadata: was None")
    monkeypatch.setattr(model_files.keras.models, "load_model", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys.modules[__name__], "MODEL", MODEL.rename("stranger.keras"))
    predicted("photos", refused=r"stranger.keras: .*\(saved by Keras 3.99.0, which it may need\): division by zero$")
    monkeypatch.setattr(npz, "HARMLESS_BYTES", 0)
    monkeypatch.setattr(npz, "MAX_RATIO", 0)
    predicted("photos", refused=r"stranger.keras: no model .* a zip bomb")


def test_names_with_control_characters_and_a_broken_pipe_lose_no_file(predicted, capsys):
    change_metadata([f"\x1b[31m{name}" for name in NAMES])
    name = os.fsdecode(b"photos/\xe9\x1b.png")
    next(Path("photos/ant").iterdir()).rename(name)
    predicted("photos", "--top", "1", "--json", "p.json", "--html", "p.html", "--csv", "p.csv")
    assert json.loads(Path("p.json").read_text())[-1]["image"] == name
    assert r"photos/\udce9\x1b.png  \x1b[31m" in capsys.readouterr().out
    command = f"{sys.executable} {ROOT}/predict.py {MODEL} photos --csv late.csv | true"
    result = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert len(pd.read_csv("late.csv")) == 50
