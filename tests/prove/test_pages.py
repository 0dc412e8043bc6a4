"""Pages as people see them: in a browser without network."""

import re
import shutil
import sys
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import find_all, needs_chromium, open_page
from repository import Repository, tiny_params
from tiny import tiny_arrays

pytestmark = needs_chromium
CELL = r'aria-label="(predicted: [^"]*)" role="graphics-symbol" aria-roledescription="rect mark"'
AXES = r'aria-label="([XY]-axis titled \'(?:actual|predicted)\'[^"]*)"'


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A pipeline that has run; its classes' order is not that of their names."""
    params = tiny_params()
    params["data"] |= {"source_classes": [3, 0, 2], "target_classes": [8, 4, 6]}
    repo = Repository(tmp_path_factory.mktemp("pages"), params)
    repo.dvc("repro")
    return repo


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["zebra", "ant", "x" * 200, 'a "quote" & {scripts}', "日本, 1.5"], 25),
        ([f"class {number}" for number in range(31)], 0),  # too many for text
    ],
)
def test_confusion_has_all_classes_in_their_order(repo, names, texts):
    actual = np.arange(2 * len(names))[::-1] % len(names)
    predicted = np.where(actual == 1, 0, actual)  # class 1 is never predicted
    table = {"actual": np.array(names)[actual], "predicted": np.array(names)[predicted], "label": actual}
    pd.DataFrame(table).to_csv(repo.path / "reports/pretrain/confusion.csv", index=False)
    repo.dvc("plots", "show", "Confusion of pretrain")
    shown = open_page((repo.path / "dvc_plots/index.html").as_uri())
    repo.dvc("checkout", "--force")
    cells = find_all(shown, CELL)
    assert len(cells) == len(names) ** 2
    assert f"predicted: {names[0]}; actual: {names[1]}; share: 100%; images: 2" in cells
    assert f"predicted: {names[1]}; actual: {names[1]}; share: 0%; images: 0" in cells
    for axis, title in zip(find_all(shown, AXES), ("X-axis titled 'predicted'", "Y-axis titled 'actual'"), strict=True):
        assert axis.startswith(title)
        assert [name for name in names if name in axis] == sorted(filter(axis.count, names), key=axis.index)
        assert names[0] in axis
    assert len(find_all(shown, r"<text[^>]*>(\d+)</text>")) == texts


def test_report_and_predictions_are_complete_without_network(repo):
    (repo.path / "photos").mkdir()
    for i, image in enumerate(tiny_arrays()["x_test"][:5]):
        Image.fromarray(image).save(repo.path / f"photos/{i}.png")
    command = (sys.executable, "predict.py", "models/finetune_fc.keras", "photos", "--html", "predictions.html")
    repo.run(*command)
    shutil.rmtree(repo.path / "photos")
    for name, images in (("reports/report.html", 7), ("predictions.html", 5)):
        shown = open_page((repo.path / name).as_uri())
        assert len(find_all(shown, r'<img[^>]*src="(data:image/png;base64,)')) == images


def test_plots_diff_shows_curves_and_confusion_of_both_without_network(repo):
    repo.commit("First run")
    repo.dvc("exp", "run", "--temp", "-n", "longer", "-S", "finetune_fc.epochs=3")
    repo.dvc("plots", "diff", "HEAD", "longer")
    shown = open_page((repo.path / "dvc_plots/index.html").as_uri())
    assert len(find_all(shown, r'(<div id="[^"]*" class="vega-embed)')) == 6
    epochs = find_all(shown, r"aria-label=\"X-axis titled 'epoch'[^\"]* from ([\d.]+ to [\d.]+)\"")
    assert [[float(end) for end in axis.split(" to ")] for axis in epochs] == [[1, 3]] * 3
    lines = find_all(shown, r'<path aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="line mark"')
    drawn = {tuple(re.findall("(?:model|rev): ([^;]*)", line)) for line in lines}
    assert drawn == set(product(("pretrain", "finetune_output", "finetune_fc"), ("HEAD", "longer")))
    axes = find_all(shown, AXES)
    assert [axis.split(": ")[1] for axis in axes] == ["dog, ant, cow"] * 4 + ["ibis, eel, gnu"] * 8
    assert len(find_all(shown, CELL)) == 3 * 2 * 9
