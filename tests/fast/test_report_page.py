"""The report's figures and its HTML page: complete, self-contained, and correct for any class name."""

import base64
import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stage_outputs import STAGES, UNTRAINED, make_results, write
from stages import report
from stages.reporting import figures, page
from stages.settings import Settings

# Names that HTML, Markdown, Matplotlib or pandas could take for something else.
NAMES = [
    "<script>alert(1)</script>", '"><img src=//e.org onerror=alert(1)>', "[a](javascript:alert(1))", "</title><b>",
    "![x](http://e.org/x.png)", "&lt;i&gt;", "US$", "a|b", "$\\frac$", "NA", "*x_1*", "~~x~~",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def drawn(monkeypatch):
    """Keep the figures by name instead of saving them, which takes most of the stage's time."""
    kept = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.update({path.stem: figure}))
    monkeypatch.setattr(page, "render_html", lambda *_: "")
    yield kept
    plt.close("all")


def reported(results) -> str:
    """Write outputs, run the stage on them and return the report as Markdown."""
    write(results)
    report.main()
    return Path("reports/report.md").read_text()


def tables(markdown: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)


def test_page_is_self_contained_and_shows_hostile_names_as_text(params):
    params(**{"data.path": "`![learning curves](../../../../../etc/hostname)`"})
    results = make_results(NAMES[:6], NAMES[6:])
    photos = [f"photos/<b>{name}" for name in results.source.predictions["image"]]
    test = replace(results.source.task.test, names=np.array(photos))
    source = replace(results.source, task=replace(results.source.task, dataset=NAMES[0], test=test))
    source = replace(source, predictions=source.predictions.assign(image=photos))
    markdown = reported(replace(results, source=source))
    text = Path("reports/report.html").read_text()
    assert f">{escape(photos[3])}</td>" in text  # a mistake
    assert "x_t" not in markdown  # names of pictures stay out of Git
    assert f"<title>Transfer learning on {escape(NAMES[0])}</title>" in text
    assert [name for name in NAMES if f">{escape(name)}</td>" not in text] == []
    assert not set(re.findall(r"<([a-z]+)", text)) & {"script", "b", "i", "s", "iframe", "object", "base", "form"}
    assert not re.search(r"<[^>]* on\w+=|url\(|@import", text)
    addresses = re.findall(r' (?:src|href|srcset|action|data)="([^"]*)"', text)
    pictures = [a.removeprefix("data:image/png;base64,") for a in addresses if a.startswith("data:image")]
    paths = re.findall(r"!\[[\w ]+\]\(([^)]+png)\)", markdown)
    paths.insert(paths.index("figures/calibration.png"), "mistakes.png")  # which Git does not get
    assert [base64.b64decode(picture) for picture in pictures] == [Path("reports", path).read_bytes() for path in paths]
    links = {a.removeprefix("#") for a in addresses if not a.startswith("data:")}
    assert links <= set(re.findall(r' id="([^"]*)"', text))


def test_further_finetuning_stage_is_in_every_file_table_and_figure(params, drawn):
    params(finetune_third=Settings().finetune_fc.model_dump() | {"trainable": ["fc1", "output"]})
    markdown, stages = reported(make_results(pretrain=UNTRAINED, finetune_third={})), [*STAGES, "finetune_third"]
    assert [table for table in tables(markdown) if "| finetune_third |" not in table and "| ant |" not in table] == []
    assert "each of the 3 p-values must be below 0.0167" in markdown
    assert list(json.loads(Path("reports/metrics.json").read_text())) == stages
    assert pd.read_csv("reports/summary.csv")["Model Name"].tolist() == stages
    assert all("finetune_third" in str([*drawn[name].legends[0].get_texts()]) for name in ("curves", "per_class"))
    assert [panel.get_suptitle() for panel in drawn["mistakes"].subfigs] == stages
    assert "confusion_finetune_third" in drawn


def test_of_many_classes_the_hardest_are_shown_in_figures_of_bounded_size(drawn):
    names = [f"class {i} {'x' * 99}" for i in range(400)]
    markdown = reported(make_results(names[:200], names[200:], {"train": 400, "test": 2000}))
    assert "and 170 more; images: 400 train" in markdown
    by_class, confused = tables(markdown)[-2:]
    assert len(by_class.splitlines()) == 2 + 30 + 2 * 30
    assert f"| {names[0]} | pretrain | 10 | 90.0% (" in by_class  # images 0 to 9 are wrong, of ten classes
    assert f"| pretrain | {names[0]} | {names[1]} | 1 |" in confused
    assert all(max(figure.get_size_inches()) <= 12 for figure in drawn.values())
    assert len(drawn["confusion_pretrain"].axes[0].texts) == 0
    assert [tick.get_text()[-1] for tick in drawn["per_class"].axes[0].get_xticklabels()] == ["…"] * 30


@pytest.mark.parametrize("channels", [1, 4])
def test_figures_show_the_right_images_with_their_labels(drawn, channels):
    sizes = {"channels": channels, "validation": 30}
    results = make_results(sizes=sizes, finetune_output={"wrong": []}, finetune_fc={"wrong": [3, 50]})
    report.write_figures(results)
    assert drawn["curves"].legends[0].get_texts()[1].get_text() == "pretrain, validation images"
    assert drawn["curves"].axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]  # epochs, as in the history
    counts = [text.get_text() for text in drawn["confusion_finetune_fc"].axes[0].texts]
    assert counts == ["19", "1", "0", "0", "20", "0", "1", "0", "19"]
    _, without, panel = drawn["mistakes"].subfigs
    assert without.get_suptitle() == "finetune_output: no mistakes"
    (ax,) = panel.axes
    upper, lower, maps = ax.images[::3], ax.images[1::3], ax.images[2::3]
    expected = results.tuned[1].task.test.x[[50, 3], ..., :3]  # the more confident one first
    assert np.array_equal([image.get_array() for image in upper], expected if channels > 1 else expected[..., 0])
    assert np.allclose([image.get_array() for image in lower], expected.mean(axis=-1))  # grey below the heat map
    assert [image.get_extent() for image in maps] == [image.get_extent() for image in lower]
    assert len({tuple(image.get_extent()) for image in upper + lower}) == 4
    assert [text.get_text() for text in ax.texts] == [
        "x_test[50]\nhen\npredicted as\nfox (91%)",
        "x_test[3]\nfox\npredicted as\ngnu (43%)",
    ]
