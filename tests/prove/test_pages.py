"""Pages as people see them: opened in a browser without network."""

import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser import needs_chromium, opened
from counting import counted
from repository import Repository, tiny_params
from tiny import tiny_arrays

pytestmark = needs_chromium
CELL = r'aria-label="(predicted: [^"]*)" role="graphics-symbol" aria-roledescription="rect mark"'
AXES = r'aria-label="([XY]-axis titled \'(?:actual|predicted)\'[^"]*)"'


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A pipeline that has not run, its classes in an order that is not that of their names."""
    params = tiny_params()
    params["data"] |= {"source_classes": [3, 0, 2], "target_classes": [8, 4, 6]}
    return Repository(tmp_path_factory.mktemp("pages"), params)


@pytest.fixture(scope="module")
def confusion(repo):
    """What is seen of `dvc plots show` for predictions: the numbers of actual and predicted classes, and all names."""

    def show(actual, predicted, names):
        table = {"actual": names[actual], "predicted": names[predicted], "probability": 0.9, "label": actual}
        path = repo.path / "reports/predictions/pretrain.csv"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame(table).to_csv(path, index=False)
        repo.dvc("plots", "show", "Confusion of pretrain")
        path.unlink()
        return opened(repo.path / "dvc_plots/index.html")

    return show


def test_the_browser_helper_notices_requests_and_errors(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<script src="https://example.org/a.js"></script><script>document.title = "ran"; missing()</script>'
    )
    shown = opened(page)
    assert shown.requests == ["https://example.org/a.js"]
    assert "missing is not defined" in shown.console[0]
    assert "<title>ran</title>" in shown.dom


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (["zebra", "ant", "x" * 200, 'a "quote" & {scripts}', "日本, 1.5"], 25),
        ([f"class {number}" for number in range(31)], 0),  # too many for text
    ],
)
def test_confusion_has_all_classes_in_their_order(confusion, names, texts):
    actual = np.arange(2 * len(names))[::-1] % len(names)
    predicted = np.where(actual == 1, 0, actual)  # nothing is taken for class 1
    shown = confusion(actual, predicted, np.array(names))
    assert (shown.requests, shown.console) == ([], [])
    cells = shown.all(CELL)
    assert len(cells) == len(names) ** 2
    assert f"predicted: {names[0]}; actual: {names[1]}; share: 100%; images: 2" in cells
    assert f"predicted: {names[1]}; actual: {names[1]}; share: 0%; images: 0" in cells
    x, y = shown.all(AXES)
    for axis, title in ((x, "X-axis titled 'predicted'"), (y, "Y-axis titled 'actual'")):
        assert axis.startswith(title)
        assert [name for name in names if name in axis] == sorted(filter(axis.count, names), key=axis.index)
        assert names[0] in axis
    assert len(shown.all(r"<text[^>]*>(\d+)</text>")) == texts


def test_report_and_predictions_are_whole_pages_without_network(repo, tmp_path):
    repo.dvc("repro")
    (repo.path / "photos").mkdir()
    for i, image in enumerate(tiny_arrays()["x_test"][:5]):
        Image.fromarray(image).save(repo.path / f"photos/{i}.png")
    command = (sys.executable, "predict.py", "models/finetune_fc.keras", "photos", "--html", "predictions.html")
    repo.run(*command)
    shutil.rmtree(repo.path / "photos")
    for name, images in (("reports/report.html", 7), ("predictions.html", 5)):
        shown = opened(repo.path / name)
        counted["pages opened in a browser without network"] += 1
        assert (shown.requests, shown.console) == ([], [])
        assert len(shown.all(r'<img[^>]*src="(data:image/png;base64,)')) == images
    (repo.path / "predictions.html").unlink()


def test_plots_diff_shows_curves_and_confusion_of_both_without_network(repo, tmp_path):
    repo.dvc("repro")
    repo.commit("First run")
    repo.dvc("exp", "run", "--temp", "-n", "longer", "-S", "finetune_fc.epochs=3")
    colleague = repo.clone(tmp_path / "colleague")  # has the page, too
    assert (colleague.path / ".dvc/plots/page.html").exists()
    repo.dvc("plots", "diff", "HEAD", "longer")
    page = repo.path / "dvc_plots/index.html"
    shown = opened(page)
    counted["pages opened in a browser without network"] += 1
    assert (shown.requests, shown.console) == ([], [])
    assert len(shown.all(r'(<div id="[^"]*" class="vega-embed)')) == 10
    epochs = shown.all(r"aria-label=\"X-axis titled 'epoch'[^\"]* from ([\d.]+ to [\d.]+)\"")
    assert [[float(end) for end in axis.split(" to ")] for axis in epochs][:4] == [[1, 3]] * 4
    assert len(shown.all(r'(class="mark-line[^>]*><path [^>]*d="M)')) >= 4 * 2 * 3
    axes = shown.all(AXES)
    assert [axis.split(": ")[1] for axis in axes] == ["dog, ant, cow"] * 4 + ["ibis, eel, gnu"] * 8
    assert len(shown.all(CELL)) == 3 * 2 * 9
    images = shown.all(r'<img src="([^"]*)"')
    assert "static/longer_reports_figures_curves.png" in images
    assert all((page.parent / image).exists() for image in images)
