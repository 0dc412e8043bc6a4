"""The report says what the stages left behind, no more, and stays whole whatever the classes are called."""

import base64
import json
import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from stages import report
from stages.reporting import figures, page, published
from stages.reporting.results import Result, Results
from stages.settings import Settings
from stages.shared.files import artifact, sha256, write_sealed, write_whole
from stages.shared.halves import Half, Part, write_half
from stages.shared.npz import write_npz

STAGES = ["pretrain", "finetune_output", "finetune_fc"]
WEIGHTS = {"pretrain": 1000, "finetune_output": 50, "finetune_fc": 200, "finetune_third": 300}
THIRD = {"finetune_third": Settings().finetune_fc.model_dump() | {"trainable": ["fc1", "output"]}}
SOURCE, TARGET = ["ant", "bee", "cow"], ["fox", "gnu", "hen"]
CONTROL = {"epochs": 0, "seconds": 0.0}
BETTER = "Which fine-tuning is better"


def half(names, train=90, validation=0, test=60, channels=3) -> Half:
    images = (np.random.default_rng(n).bytes(n * 36 * channels) for n in (train, validation, test))
    x = [np.frombuffer(content, np.uint8).reshape(-1, 6, 6, channels) for content in images]
    return Half("tiny", names, *(Part(part, np.arange(len(part)) % len(names)) for part in x))


def result(stage, half, wrong=range(10), epochs=3, seconds=6.0, cpu="a CPU") -> Result:
    """A model that is right but for the test images `wrong`, and fits the better the more weights it trains."""
    actual, names = half.test.y, np.array(half.class_names)
    predicted = np.where(np.isin(np.arange(len(actual)), wrong), (actual + 1) % len(names), actual)
    predictions = pd.DataFrame({"actual": names[actual], "predicted": names[predicted]})
    predictions["probability"] = np.linspace(0.4, 1, len(actual))
    rows = [[epoch + 1, 0.5 + epoch / 10 + WEIGHTS[stage] / 1e6, 1 / (epoch + 1), 0.5, 0.9] for epoch in range(epochs)]
    history = pd.DataFrame(rows, columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"], dtype=float)
    record = {"trainable_parameters": WEIGHTS[stage], "test_accuracy": float((predicted == actual).mean())}
    record |= {"test_loss": 0.75, "set_up": {"cpu": cpu, "threads": 2}}
    mistakes = np.array(sorted(wrong, reverse=True)[:8], int)
    heat = np.zeros((len(mistakes), 2, 2), np.float32)
    heat[:, 0, 1] = 1
    return Result(stage, half, history, predictions, mistakes, heat, record, seconds)


def made(source=SOURCE, target=TARGET, sizes=None, **changes) -> Results:
    """Results of three stages and of those that `changes` names besides; it holds keywords of `result`."""
    halves = half(source, **(sizes or {})), half(target, **(sizes or {}))
    names = dict.fromkeys([*STAGES, *changes])
    first, *tuned = (result(name, halves[name != "pretrain"], **changes.get(name, {})) for name in names)
    return Results(first, tuned)


def write(found: Results) -> None:
    """What the stages write."""
    write_half("source", found.source.half)
    write_half("target", found.tuned[0].half)
    for r in found.all:
        sums = {}
        for kind, table in (("history", r.history), ("predictions", r.predictions)):
            write_whole(artifact(kind, r.stage), table.to_csv(index=False).encode())
            sums[kind] = sha256(artifact(kind, r.stage).read_bytes())
        write_npz(artifact("gradcam", r.stage), {"row": r.mistakes, "heat": r.heat})
        write_sealed(artifact("record", r.stage), r.record | {"sha256_of": sums})
        write_sealed(artifact("timing", r.stage), {"train_seconds": r.train_seconds})


@pytest.fixture
def main(params, monkeypatch):
    """Start the stage on what was written and return its page."""

    def run(*stages: str) -> str:
        monkeypatch.setattr(sys, "argv", ["report", *(stages or STAGES)])
        report.main()
        return Path("reports/report.md").read_text()

    return run


@pytest.fixture
def without_figures(monkeypatch):  # they take most of the time
    monkeypatch.setattr(report, "write_figures", lambda found: None)
    monkeypatch.setattr(page, "html", lambda markdown, results: "")


@pytest.fixture
def drawn(monkeypatch):
    """Draw the figures of results and return them by name, unsaved."""

    def draw(found: Results) -> dict:
        kept = {}
        monkeypatch.setattr(figures, "save", lambda figure, path: kept.update({path.stem: figure}))
        report.write_figures(found)
        return kept

    yield draw
    plt.close("all")


def rendered(found: Results, params: Settings | None = None, section: str = "") -> str:
    """The page, or what stands below a heading."""
    markdown = page.render(found, params or Settings())
    return re.split(r"^## ", markdown.split(f"\n## {section}")[1], flags=re.MULTILINE)[0] if section else markdown


def html(markdown: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def seen(html: str) -> str:
    """What a reader sees of it."""
    return unescape(re.sub(r"<[^>]+>", "", html))


def tables(text: str) -> list[list[list[str]]]:
    """Each table's rows of cells, the header's first, as a reader of Markdown or HTML sees them."""
    found = re.findall(r"<table>.*?</table>", text if text.startswith("<!DOCTYPE") else html(text), re.DOTALL)
    rows = [re.findall(r"<tr>.*?</tr>", table, re.DOTALL) for table in found]
    return [[[seen(cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)] for row in table] for table in rows]


def test_numbers_are_those_of_the_stages(main, without_figures):
    write(made(pretrain={"seconds": 90.0, "wrong": range(15)}, finetune_output={"epochs": 1, "wrong": []}))
    (_, *rows), saved, averages, by_class = tables(main())
    metrics, summary = json.loads(Path("reports/metrics.json").read_text()), pd.read_csv("reports/summary.csv")
    assert list(metrics) == summary["Model Name"].tolist() == STAGES
    keys = ["trainable_parameters", "train_accuracy", "test_accuracy", "test_loss", "train_seconds"]
    values = dict(zip(keys, [1000, pytest.approx(0.701), 0.75, 0.75, 90.0], strict=True))
    assert {key: metrics["pretrain"][key] for key in keys} == values
    columns = ["Number of Trainable Parameters", "Training Time (min)", "Train Accuracy", "Test Accuracy"]
    assert list(summary) == ["Model Name", *columns]  # the notebook's
    assert summary.iloc[0].tolist() == ["pretrain", 1000, 1.5, pytest.approx(0.701), 0.75]
    assert rows[0] == ["pretrain", "1,000", "90.0 s", "0.7010", "0.7500", "0.6277 to 0.8422", "0.7500"]  # Wilson, 45/60
    assert saved[2][:4] == ["finetune_output", "50", "5%", ", ".join(Settings().model.layers_with_weights[:-1])]
    assert by_class[1] == ["pretrain", "ant", "0.750", "0.531 to 0.888", "20"]  # Wilson, 15/20
    assert averages[1] == ["pretrain", "0.7500", "0.7500", "0.7500"]  # of each class 15 right, 5 others taken for it
    assert [metrics["pretrain"][key] for key in ("balanced_accuracy", "macro_f1")] == pytest.approx([0.75, 0.75])


def test_with_early_stopping_the_numbers_are_those_of_the_epoch_that_was_kept(main, without_figures):
    found = made(sizes={"validation": 6})
    found.source.history.insert(1, "kept", [0.0, 1.0, 0.0])
    found.source.history["val_accuracy"] = [0.1, 0.2, 0.3]
    write(found)
    assert "`pretrain` trained for 3 epochs and kept the weights of epoch 2," in main()
    metrics = json.loads(Path("reports/metrics.json").read_text())
    keys = ["kept_epoch", "train_accuracy", "validation_accuracy"]
    assert [metrics["pretrain"][key] for key in keys] == [2, pytest.approx(0.601), 0.2]
    assert "kept_epoch" not in metrics["finetune_fc"]


def test_a_third_variant_is_in_every_table_and_figure_and_two_runs_are_equal(main, params, drawn):
    """Of a control run, of classes that Matplotlib, Markdown or pandas could take for something else."""
    params(**THIRD)
    names = ["US$", "a|b", "$\\frac$", "NA", "*x_1*", "<b>&amp;"]
    found = made(names[:3], names[3:], pretrain=CONTROL, finetune_third={})
    write(found)
    written = []
    for _ in range(2):
        markdown = main(*STAGES, "finetune_third")
        written.append({path: path.read_bytes() for path in Path("reports").rglob("*.*")})
    assert [path for path in written[0] if written[0][path] != written[1][path]] == []
    images = {f"figures/{path.name}" for path in written[0] if path.suffix == ".png"}
    assert set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)) == images
    assert "0.0167" in markdown  # the level for each of three comparisons
    assert [row[1] for row in tables(markdown)[-1][1:7]] == names
    assert all("finetune_third" in {row[0] for row in table} for table in tables(markdown))
    assert list(json.loads(Path("reports/metrics.json").read_text())) == [*STAGES, "finetune_third"]
    shown = drawn(found)
    assert all("finetune_third" in str([*shown[name].legends[0].get_texts()]) for name in ("curves", "per_class"))
    assert [panel.get_suptitle() for panel in shown["mistakes"].subfigs] == [*STAGES, "finetune_third"]


class Reader(HTMLParser):
    """What a browser makes of a page: its tags, and the addresses that it would ask for."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.ids = set(), [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.addresses += [values[name] for name in ("src", "href", "srcset", "action", "data") if name in values]
        self.ids.add(f"#{values.get('id')}")
        assert not [name for name in values if name.startswith("on")]


def test_the_page_has_everything_inside_and_shows_hostile_names_as_text(main):
    script, image, link = (
        "<script>alert(1)</script>",
        '"><img src=//e.org onerror=alert(1)>',
        "[a](javascript:alert(1))",
    )
    names = [script, image, link, "![x](http://e.org/x.png)", "</title><b>", "&lt;i&gt;"]
    write(made(names[:3], names[3:]))
    write_half("source", replace(half(names[:3]), dataset=script))
    markdown, text = main(), Path("reports/report.html").read_text()
    assert tables(text) == tables(markdown)
    assert {row[1] for row in tables(text)[3][1:]} == set(names)
    assert unescape(re.search("<title>(.*)</title>", text)[1]) == f"Transfer learning on {script}"
    shown = Reader(text)
    assert not shown.tags & {"script", "b", "i", "iframe", "object", "base", "form"}
    assert not re.search(r"url\(|@import", text.split("</style>")[0])
    pictures = [a.removeprefix("data:image/png;base64,") for a in shown.addresses if a.startswith("data:image")]
    paths = re.findall(r"!\[[\w ]+\]\((figures/[^)]+)\)", markdown)
    assert [base64.b64decode(picture) for picture in pictures] == [Path("reports", path).read_bytes() for path in paths]
    assert {a for a in shown.addresses if not a.startswith("data:")} <= shown.ids  # the contents
    for r in json.loads(Path("reports/metrics.json").read_text()).values():
        assert f"{100 * r['test_accuracy']:.2f}% <small>test accuracy" in text


def test_imbalance_is_said_of_more_than_one_to_three_and_names_the_classes():
    found = made()
    for counts, says in (([60, 20, 20], False), ([61, 20, 30], True)):
        y = np.repeat(np.arange(3), counts)
        train = Part(np.zeros((len(y), 6, 6, 3), np.uint8), y)
        imbalanced = replace(found, source=replace(found.source, half=replace(found.source.half, train=train)))
        markdown = rendered(imbalanced)
        assert ("source classes are imbalanced" in markdown) == says
        assert ("61 training images of ant, 20 of bee" in markdown) == says
        assert "target classes are imbalanced" not in markdown


def test_a_model_with_one_answer_is_said_to_have_learned_nothing(params):
    found = made()
    one_answer = replace(found.source, predictions=found.source.predictions.assign(predicted=SOURCE[1]))
    text = rendered(replace(found, source=one_answer))
    assert f"**`pretrain` learned nothing**: it takes every test image for {SOURCE[1]}." in text
    assert "`-S seed=2`, or standardised pixels, `-S model.rescale=true`" in text
    assert "`-S seed=2`." in rendered(replace(found, source=one_answer), params(**{"model.rescale": True}))
    untrained = replace(one_answer, history=one_answer.history[:0])
    assert "learned nothing" not in rendered(found) + rendered(replace(found, source=untrained))


def test_confidence_is_compared_with_accuracy():
    answer = rendered(made(pretrain={"wrong": range(24)}), section="How far can their")
    assert (
        "`pretrain`: on average 70.0% sure of its answers and right in 60.0% of them, so 10.0 points too sure" in answer
    )
    assert (
        "`finetune_fc`: on average 70.0% sure of its answers and right in 83.3% of them, so 13.3 points too unsure"
        in answer
    )


def test_of_many_classes_the_hardest_are_shown_in_figures_of_bounded_size(main, monkeypatch):
    names = [f"class {i} {'x' * 99}" for i in range(400)]
    write(made(names[:200], names[200:], {"train": 400, "test": 2000}))
    saved = {}
    monkeypatch.setattr(page, "html", lambda markdown, results: "")
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.update({path.stem: figure}) or plt.close(figure))
    markdown = main()
    assert "and 170 more; images: 400 train" in markdown
    *_, by_class, confused = tables(markdown)
    assert len(by_class) == 1 + 30 * len(STAGES)
    assert by_class[1][:3] == ["pretrain", names[0], "0.900"]  # images 0 to 9 are wrong, of ten classes
    assert confused[1] == ["pretrain", names[0], names[1], "1"]
    assert all(max(figure.get_size_inches()) <= 12 for figure in saved.values())
    assert len(saved["confusion_pretrain"].axes[0].texts) == 0
    assert [tick.get_text()[-1] for tick in saved["per_class"].axes[0].get_xticklabels()] == ["…"] * 30


def test_published_results_stand_beside_those_on_the_notebooks_images_only():
    (first, second), images = published.CLASSES, {"train": 25_000, "test": 5_000}
    assert [row[7:] for row in tables(rendered(made(first, second, images)))[0][1:]] == [
        ["1,633,733", "8.37 min", "0.8472", "0.7662"],
        ["325", "4.23 min", "0.5703", "0.6060"],
        ["8,581", "4.32 min", "0.6600", "0.6904"],
    ]
    for other in (made(first, second, images | {"test": 4_999}), made(first, second[::-1], images)):
        assert "published" not in rendered(other)
        assert "notebook's code" not in rendered(other)


def test_a_run_is_judged_by_the_spread_of_the_notebooks_code(tmp_path, monkeypatch):
    """The middle of three runs 0.01 apart, give or take 0.0497, is where one more falls; of four, 0.0291."""
    # The third learned nothing, the last was only pretrained.
    runs = ".99,.5,.96\n.98,.51,.95\n0.2000,0.2000,0.2000\n1,.49,.94\n.99,,\n"
    (tmp_path / "runs.csv").write_text(f"# a machine\n{','.join(STAGES)}\n{runs}")
    monkeypatch.setattr(published, "RUNS", tmp_path / "runs.csv")
    first, second = published.CLASSES
    results = made(first, second, {"train": 25_000, "test": 5_000}, finetune_fc={"wrong": range(1000)})
    assert "(a machine)" in rendered(results)
    assert "Left out: 1 more, which learned nothing" in rendered(results)
    assert tables(rendered(results))[1][1:] == [
        ["pretrain", "4", "0.9900 ± 0.0082", "0.9609 to 1.0000", "0.9980, inside"],
        ["finetune_output", "3", "0.5000 ± 0.0100", "0.4503 to 0.5497", "0.9980, 0.4483 above"],
        ["finetune_fc", "3", "0.9500 ± 0.0100", "0.9003 to 0.9997", "0.8000, 0.1003 below"],
    ]


def test_the_notebooks_code_was_run_again_for_every_model_of_its_table():
    rerun, _ = published.rerun()
    assert set(rerun.index) == set(published.TABLE)
    assert (rerun["runs"] > 1).all()
    assert (rerun["low"] < rerun["mean"]).all()


@pytest.mark.parametrize(("differ", "p"), [(5, "0.062"), (6, "0.031")])
@pytest.mark.parametrize("best", STAGES[1:])
def test_better_is_said_only_of_a_significant_difference(best, differ, p):
    """And accuracies stand in the order of the names."""
    worst = next(stage for stage in STAGES[1:] if stage != best)
    accuracy = {best: f"{40 / 60:.4f}", worst: f"{(40 - differ) / 60:.4f}"}
    answer = rendered(made(**{best: {"wrong": range(20)}, worst: {"wrong": range(20 + differ)}}), section=BETTER)
    first, second = STAGES[1:]
    undecided = f"`{first}` and `{second}`: **no significant difference**: {accuracy[first]} against {accuracy[second]}"
    significant = f"**`{best}` is better than `{worst}`**: {accuracy[best]} against {accuracy[worst]}"
    assert (significant if differ >= 6 else undecided) in answer
    assert ("is better than" in answer) == (differ >= 6)
    counts = {best: differ, worst: 0}
    assert f"only `{first}` gets right: {counts[first]}; only `{second}`: {counts[second]} (p = {p})" in answer


def test_a_reason_is_given_only_if_the_numbers_agree_with_it(params):
    found = made(finetune_output={"wrong": range(40)})
    assert "held back" in rendered(found, section=BETTER)
    other = rendered(found, params(**{"finetune_fc.epochs": 3, "finetune_fc.optimizer": "adam"}), BETTER)
    assert "`epochs`, `optimizer`" in other
    assert "held back" not in other
    for worse in ({"finetune_fc": {"wrong": range(40)}}, {"finetune_output": {"wrong": range(40), "epochs": 6}}):
        answer = rendered(made(**worse), section=BETTER)  # more layers do not help, or do not fit better
        assert "held back" not in answer
        assert "do not explain the difference" in answer


def test_a_control_is_said_to_be_one_and_leaves_gaps_and_no_nan(main, without_figures):
    assert "`dvc exp run -S pretrain.epochs=0`" in rendered(made(), section="What was the transfer worth")
    write(made(pretrain=CONTROL))
    markdown = main()
    assert "random features" in markdown.split("\n| ")[0].lower()
    metrics = Path("reports/metrics.json").read_text()
    assert not re.search(r"\b(nan|NaN|None|inf|Infinity)\b", markdown + metrics)
    assert json.loads(metrics)["pretrain"]["train_accuracy"] is None


@pytest.mark.parametrize(("channels", "validation"), [(1, 30), (4, 0)])
def test_figures_show_the_right_images_and_say_which(drawn, channels, validation):
    sizes = {"channels": channels, "validation": validation}
    found = made(sizes=sizes, finetune_fc={"wrong": [3, 50]}, finetune_output={"wrong": []})
    shown = drawn(found)
    dashed = shown["curves"].legends[0].get_texts()[1].get_text()
    assert dashed == f"pretrain, {'validation' if validation else 'test'} images"
    assert shown["curves"].axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]  # epochs, as in the history
    counts = [text.get_text() for text in shown["confusion_finetune_fc"].axes[0].texts]
    assert counts == ["19", "1", "0", "0", "20", "0", "1", "0", "19"]
    _, without, panel = shown["mistakes"].subfigs
    assert without.get_suptitle() == "finetune_output: no mistakes"
    (ax,) = panel.axes
    upper, lower, maps = ax.images[::3], ax.images[1::3], ax.images[2::3]
    pixels = np.stack([image.get_array() for image in upper + lower])
    expected = found.tuned[1].half.test.x[[50, 3, 50, 3], ..., :3]  # the more confident one first; below, with its map
    assert np.array_equal(pixels, expected if channels > 1 else expected[..., 0])
    places = [image.get_extent() for image in upper + lower]
    assert [image.get_extent() for image in maps] == places[2:]
    assert len({(left, bottom) for left, _, bottom, _ in places}) == 4
    assert np.array(places) @ [[-1, 0], [1, 0], [0, -1], [0, 1]] == pytest.approx(1)  # as square as the images are
    assert [text.get_text() for text in ax.texts] == ["hen\ntaken for\nfox 91%", "fox\ntaken for\ngnu 43%"]
    assert [text.get_position()[0] for text in ax.texts] == [(left + right) / 2 for left, right, _, _ in places[:2]]


def test_what_was_run_is_said(params):
    found = made(finetune_fc={"cpu": "another CPU"})
    markdown = rendered(found)
    assert "differ from the notebook's: none\n" in markdown
    assert "- curves: drawn on the test images" in markdown
    assert "- set-up of pretrain, finetune_output: cpu a CPU, threads 2\n" in markdown
    assert "- set-up of finetune_fc: cpu another CPU, threads 2\n" in markdown
    assert "dropout is on (`model.dropout`: 0.2)" in markdown  # why training accuracy can be below test accuracy
    digits = rendered(found, params(seed=7, **{"finetune_fc.epochs": 20, "data.path": "data/raw/digits.npz"}))
    assert 'seed: 7, data.path: "data/raw/digits.npz", finetune_fc.epochs: 20\n' in seen(html(digits))
    assert "built-in digits" in digits
    held_out = rendered(made(sizes={"validation": 30}))
    assert "images: 90 train, 30 validation, 60 test" in held_out


@pytest.mark.parametrize("damage", [None, b"", "half", b"a,b\n1,2\n", b"[]", b"\xff\xfe\x00\x01" * 9])
def test_damaged_input_is_refused_in_one_line(main, without_figures, damage):
    reports = [artifact(kind, "finetune_fc") for kind in ("history", "predictions", "gradcam", "record", "timing")]
    for file in (*reports, Path("data/prepared/target.npz")):
        write(made())
        content = file.read_bytes()[: file.stat().st_size // 2] if damage == "half" else damage
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(SystemExit, match=r"^error: [^\n]*(finetune_fc|target\.npz)[^\n]*$"):
            main()
        assert not Path("reports/report.md").exists()


def test_stages_that_do_not_fit_are_refused_in_one_line(main, without_figures):
    write(made(target=SOURCE))
    write_half("target", half(TARGET))
    with pytest.raises(SystemExit, match=r"^error: [^\n]*finetune_output[^\n]*predictions of other images[^\n]*$"):
        main()
    write(made())
    with pytest.raises(SystemExit, match=r"^error: [^\n]*expected [^\n]*$"):
        main("pretrain", "finetune_unheard")
