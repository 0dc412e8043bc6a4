"""`predict.py`: from a model's file and pictures to tables and a page, with nothing else at hand."""

import io
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import predict
from stages.shared.errors import UserError
from stages.shared.halves import read_half
from stages.training import loop, network, record


@pytest.fixture
def predicted(tiny, workspace, monkeypatch, set_up):
    """Train on five classes, save the test images as pictures, and predict them; what follows is further arguments."""
    from stages import prepare

    prepare.main()
    half = read_half("source")
    model = network.build((8, 8, 3), 5, tiny.model, half.train.x)
    history, seconds, _ = loop.fit(model, half, tiny.pretrain, "pretrain", tiny)
    record.write("pretrain", model, half, history, seconds, threads=1)
    (workspace / "photos").mkdir()
    for i, image in enumerate(half.test.x):
        Image.fromarray(image).save(workspace / f"photos/{i:03}.png")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["predict.py", "models/pretrain.keras", *arguments])
        predict.main()

    return run


def test_predictions_are_those_of_the_stage_whichever_way_they_are_asked_for(predicted, workspace, capsys, monkeypatch):
    predicted("photos", "--top", "2", "--csv", "p.csv", "--json", "p.json", "--html", "p.html")
    expected = pd.read_csv("reports/predictions/pretrain.csv")
    table = pd.read_csv("p.csv")
    assert list(table) == ["picture", "class 1", "probability 1", "class 2", "probability 2"]
    assert table["class 1"].tolist() == expected["predicted"].tolist()
    assert np.allclose(table["probability 1"], expected["probability"], atol=2e-6)
    nested = json.loads((workspace / "p.json").read_text())
    assert nested[7]["picture"] == "photos/007.png"
    assert nested[7]["predictions"][1]["class"] == table["class 2"][7]
    page = (workspace / "p.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(expected)
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = capsys.readouterr().out
    assert re.search(rf"photos/007.png +{table['class 1'][7]} +{table['probability 1'][7]:.3f}", shown)
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/000.png\nphotos/007.png\n"))
    for ways in (["-"], ["photos/000.png", "photos/007.png"], ["photos/00[07].png"]):
        predicted(*ways, "--csv", "some.csv")
        assert pd.read_csv("some.csv")["class 1"].tolist() == table["class 1"][[0, 7]].tolist()


def test_what_cannot_be_read_is_named_and_does_not_end_the_rest(predicted, workspace, capsys):
    (workspace / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(
        SystemExit, match=r"error: 2 of 3 pictures cannot be read:\n  broken.jpg: none of.*\n  none.png: No such"
    ):
        predicted("broken.jpg", "photos/001.png", "none.png", "--csv", "p.csv")
    assert len(pd.read_csv("p.csv")) == 1
    assert "photos/001.png" in capsys.readouterr().out
    for wrong, problem in ((["empty*"], "no pictures there"), (["photos", "--top", "0"], "--top: was 0, expected")):
        with pytest.raises(SystemExit, match=f"^error: [^\n]*{problem}[^\n]*$"):
            predicted(*wrong)


def test_file_that_is_no_model_of_the_pipeline_is_refused(workspace):
    (workspace / "m.keras").write_bytes(b"text")
    for name in ("m.keras", "none.keras"):
        with pytest.raises(UserError, match=rf"^{name}: (not a model of this pipeline|No such file)[^\n]*$"):
            predict.predict(workspace.joinpath(name).relative_to(workspace), [], 3, False)
