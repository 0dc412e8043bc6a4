"""`predict.py`: from a model's file and pictures to tables and a page."""

import io
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import predict
from stages.training.evaluate import evaluate_and_save


@pytest.fixture
def predicted(tiny, workspace, monkeypatch, tasks, train):
    """Train and evaluate a model, and save its test images as pictures; run ``predict.py`` with further arguments."""
    model, history = train(tiny, tasks["source"])
    evaluate_and_save("pretrain", model, tasks["source"], history, threads=1)
    (workspace / "photos").mkdir()
    for i, image in enumerate(tasks["source"].test.x):
        Image.fromarray(image).save(workspace / f"photos/{i:03}.png")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["predict.py", "models/pretrain.keras", *arguments])
        predict.main()

    return run


def test_predictions_are_those_of_the_stage_in_every_format(predicted, workspace, capsys, monkeypatch):
    monkeypatch.setattr(predict, "MAX_SHOWN", 40)
    monkeypatch.setattr(predict, "BATCH", 30)
    predicted("photos", "--top", "2", "--csv", "p.csv", "--json", "p.json", "--html", "p.html")
    expected = pd.read_csv("reports/pretrain/predictions.csv")
    table = pd.read_csv("p.csv")
    assert list(table) == ["picture", "class 1", "probability 1", "class 2", "probability 2"]
    assert table["class 1"].tolist() == expected["predicted"].tolist()
    assert np.allclose(table["probability 1"], expected["probability"], atol=2e-6)
    nested = json.loads((workspace / "p.json").read_text())
    assert nested[7]["picture"] == "photos/007.png"
    assert nested[7]["predictions"][1]["class"] == table["class 2"][7]
    page = (workspace / "p.html").read_text()
    assert page.count('src="data:image/png;base64,') == 40
    assert "10 more pictures are in the table" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = capsys.readouterr().out
    assert re.search(rf"photos/007.png +{table['class 1'][7]} +{table['probability 1'][7]:.3f}", shown)
    assert "written: p.csv\nwritten: p.json\nwritten: p.html\n" in shown


def test_pictures_are_given_as_files_patterns_or_a_list(predicted, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/000.png\nphotos/007.png\n"))
    for arguments in (["-"], ["photos/000.png", "photos/007.png"], ["photos/00[07].png"]):
        predicted(*arguments, "--csv", "some.csv")
        assert pd.read_csv("some.csv")["picture"].tolist() == ["photos/000.png", "photos/007.png"]


def test_unreadable_pictures_are_listed_and_the_others_predicted(predicted, workspace, capsys):
    (workspace / "broken.jpg").write_bytes(b"no picture")
    message = r"^error: 2 of 3 pictures cannot be read:\n  broken.jpg: none of.*\n  none.png: No such file"
    with pytest.raises(SystemExit, match=message):
        predicted("broken.jpg", "photos/001.png", "none.png", "--csv", "p.csv")
    assert len(pd.read_csv("p.csv")) == 1
    assert "photos/001.png" in capsys.readouterr().out


def test_arguments_that_name_nothing_usable_are_refused_in_one_line(predicted, workspace, monkeypatch):
    (workspace / "m.keras").write_bytes(b"text")
    for arguments, message in (
        (["models/pretrain.keras", "empty*"], r"empty\*: no pictures found"),
        (["models/pretrain.keras", "photos", "--top", "0"], "--top: was 0, expected"),
        (["m.keras", "photos"], "m.keras: not a model of this pipeline"),
        (["none.keras", "photos"], "none.keras: No such file"),
    ):
        monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
        with pytest.raises(SystemExit, match=f"^error: {message}[^\n]*$"):
            predict.main()
