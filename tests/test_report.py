"""The report says what the files of the stages say, no more, and stays whole whatever the classes are called."""

import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from repository import ROOT
from stages import figures, notebook, report
from stages.arrays import sha256, write_sealed
from stages.settings import Settings, UserError, leaves, nested

STAGES = ["pretrain", "finetune_output", "finetune_fc"]
PARAMETERS = {"pretrain": 1000, "finetune_output": 50, "finetune_fc": 200}
SOURCE, TARGET = ["ant", "bee", "cow"], ["fox", "gnu", "hen"]
IMAGES = 60  # test images of a half
SET_UP = {"cpu": "a CPU", "threads": 2}
FIGURES = ["curves", "per_class", "mistakes", *(f"confusion_{stage}" for stage in STAGES)]


def write(path, text):
    path = Path("reports") / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_half(half, names, train=90, validation=0, test=IMAGES, channels=3):
    rng = np.random.default_rng(0)
    arrays = {f"y_{part}": np.arange(n) % 3 for part, n in (("train", train), ("validation", validation))}
    arrays["y_test"] = np.arange(test) % len(names)
    arrays["x_test"] = rng.integers(0, 256, (test, 6, 6, channels), dtype=np.uint8)
    Path("data/prepared").mkdir(parents=True, exist_ok=True)
    np.savez(f"data/prepared/{half}.npz", class_names=np.array(names), dataset=np.array(["tiny"]), **arrays)


def write_stage(stage, names, wrong=range(10), epochs=3, seconds=6.0, test=IMAGES, parameters=None, set_up=SET_UP):
    """What a training stage leaves: right but for the test images `wrong`, with the more parameters the better fit."""
    parameters = parameters or PARAMETERS[stage]
    actual = np.arange(test) % len(names)
    predicted = np.where(np.isin(np.arange(test), wrong), (actual + 1) % len(names), actual)
    named = {"actual": np.array(names)[actual], "predicted": np.array(names)[predicted]}
    table = pd.DataFrame(named | {"probability": np.linspace(0.4, 1, test)})
    rows = [[epoch, 0.5 + epoch / 10 + parameters / 1e6, 1 / (epoch + 1), 0.5, 0.9] for epoch in range(epochs)]
    curve = pd.DataFrame(rows, columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"])
    accuracy = float((actual == predicted).mean())
    record = {"trainable_parameters": parameters, "test_accuracy": accuracy, "test_loss": 0.75, "set_up": set_up}
    write(f"history/{stage}.csv", curve.to_csv(index=False))
    write(f"predictions/{stage}.csv", table.to_csv(index=False))
    digests = {kind: sha256(Path(f"reports/{kind}/{stage}.csv").read_bytes()) for kind in ("history", "predictions")}
    write_sealed(Path(f"reports/record/{stage}.json"), record | {"sha256_of": digests})
    write_sealed(Path(f"reports/timing/{stage}.json"), {"train_seconds": seconds})


@pytest.fixture
def stages_have_run(params):
    """Write the files of all stages; keywords named after a stage change its own."""

    def run(target=TARGET, source=SOURCE, half=None, **changes):
        for name, classes in (("source", source), ("target", target)):
            write_half(name, classes, **(half or {}))
        for stage in STAGES:
            write_stage(stage, source if stage == "pretrain" else target, **changes.get(stage, {}))
        return params()

    return run


def read(stages=STAGES):
    halves = [report.read_half(Path(f"data/prepared/{half}.npz")) for half in ("source", "target")]
    return [report.read_result(stage, halves[i > 0]) for i, stage in enumerate(stages)]


@pytest.fixture
def without_figures(monkeypatch):
    """They take most of the time."""
    monkeypatch.setattr(report, "write_figures", lambda results: [])


@pytest.fixture
def main(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *(arguments or STAGES)])
        report.main()
        return Path("reports/report.md").read_text()

    return run


def section(markdown, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE)[1]


def reads(inline):
    """The text that a reader sees."""
    return "".join(token.content for token in inline.children if token.type in ("text", "code_inline"))


def tables(markdown):
    """Each table's rows of cells, the header's first, as a reader sees them."""
    found, inside = [], False
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        inside ^= token.type in ("table_open", "table_close")
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif inside and token.type == "inline":
            found[-1][-1].append(reads(token))
    return found


def only_numbers(text):
    """Refuse the NaN and Infinity that Python's JSON allows."""

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_metrics_and_summary_are_what_the_stages_recorded(stages_have_run, without_figures, main):
    stages_have_run(pretrain={"seconds": 90.0, "wrong": range(15)}, finetune_output={"epochs": 1, "wrong": []})
    main()
    metrics = only_numbers(Path("reports/metrics.json").read_text())
    assert list(metrics) == STAGES
    assert metrics["pretrain"] == {
        "trainable_parameters": 1000,
        "train_accuracy": pytest.approx(0.701),
        "test_accuracy": 0.75,
        "test_loss": 0.75,
        "train_seconds": 90.0,
    }
    assert [list(values) for values in metrics.values()] == [list(metrics["pretrain"])] * 3
    assert (metrics["finetune_output"]["train_accuracy"], metrics["finetune_output"]["test_accuracy"]) == (0.50005, 1)
    summary = pd.read_csv("reports/summary.csv")
    assert list(summary.columns) == [
        "Model Name",
        "Number of Trainable Parameters",
        "Training Time (min)",
        "Train Accuracy",
        "Test Accuracy",
    ]
    assert summary.iloc[0].tolist() == ["pretrain", 1000, 1.5, pytest.approx(0.701), 0.75]
    assert summary["Model Name"].tolist() == STAGES


def test_files_are_whole_linked_and_equal_in_two_runs(stages_have_run, main):
    stages_have_run()
    written = []
    for _ in range(2):
        markdown = main()
        files = [path for path in Path("reports").rglob("*") if path.is_file()]
        written.append({path.relative_to("reports").as_posix(): path.read_bytes() for path in files})
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []
    images = {f"figures/{name}.png" for name in FIGURES}
    assert {"metrics.json", "summary.csv", "report.md"} | images <= set(written[0])
    assert set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)) == images
    for name in images:
        pixels = mpl.image.imread(Path("reports") / name)
        assert min(pixels.shape[:2]) > 200, name
        assert len(np.unique(pixels[..., 0])) > 10, name


def test_results_table_has_every_model_and_its_interval(stages_have_run):
    stages_have_run(finetune_fc={"wrong": range(15)})
    header, *rows = tables(report.results_table(read()))[0]
    assert header == [
        "model",
        "trainable parameters",
        "training",
        "train accuracy",
        "test accuracy",
        "95 % interval",
        "test loss",
    ]
    assert rows[2] == ["finetune_fc", "200", "6.0 s", "0.7002", "0.7500", "0.6277 to 0.8422", "0.7500"]  # Wilson, 45/60


@pytest.fixture
def cifar10(params):
    def run(source=notebook.SOURCE_CLASSES, target=notebook.TARGET_CLASSES, train=25_000, test=5_000):
        write_half("source", source, train=train, test=test)
        write_half("target", target, train=train, test=test)
        for stage in STAGES:
            write_stage(stage, source if stage == "pretrain" else target, test=test)
        return report.text(read(), params())

    return run


def test_published_results_stand_beside_those_on_the_notebooks_data(cifar10):
    header, *rows = tables(cifar10())[0]
    beside = [name for name in header if name.startswith("notebook: ")]
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert [[row[name] for name in beside] for row in shown] == [
        ["1,633,733", "8.37 min", "0.8472", "0.7662"],
        ["325", "4.23 min", "0.5703", "0.6060"],
        ["8,581", "4.32 min", "0.6600", "0.6904"],
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"train": 24_999},
        {"test": 4_999},
        {"source": notebook.TARGET_CLASSES, "target": notebook.SOURCE_CLASSES},
        {"target": notebook.TARGET_CLASSES[::-1]},
        {"target": notebook.TARGET_CLASSES[:4]},
    ],
    ids=lambda other: "+".join(other),
)
def test_published_results_are_not_shown_on_other_data(cifar10, other):
    markdown = cifar10(**other)
    assert "notebook: " not in markdown
    assert "0.7662" not in markdown


@pytest.mark.parametrize(("differ", "p"), [(0, "1"), (5, "0.062"), (6, "0.031"), (30, "1.9e-09")])
@pytest.mark.parametrize("better", STAGES[1:])
def test_better_is_said_only_of_a_significant_difference(stages_have_run, better, differ, p):
    worse = next(stage for stage in STAGES[1:] if stage != better)
    params = stages_have_run(**{better: {"wrong": range(20)}, worse: {"wrong": range(20 + differ)}})
    answer = report.answer_better(read(), params)
    assert f"(p = {p})" in answer
    if differ >= 6:
        assert f"**`{better}` is better than `{worse}`**: 0.6667 against {40 / 60 - differ / 60:.4f}" in answer
        assert f"{differ} test images are right with `{better}` alone, 0 with `{worse}` alone" in answer
        assert "no difference shown" not in answer
    else:
        assert "**no difference shown**" in answer
        assert "is better than" not in answer


def test_reason_is_given_only_where_the_numbers_agree_with_it(stages_have_run, params):
    worse = {"wrong": range(40)}
    settings = stages_have_run(finetune_output=worse)
    assert "held back by what it may not change" in report.answer_better(read(), settings)
    other = report.answer_better(read(), params(**{"finetune_fc.epochs": 3, "finetune_fc.optimizer": "adam"}))
    assert "They differ in `epochs`, `optimizer`, too" in other
    assert "held back" not in other
    settings = stages_have_run(finetune_fc=worse)
    assert "held back" not in (answer := report.answer_better(read(), settings))
    assert "these numbers alone do not explain it" in answer


def test_three_variants_are_compared_in_pairs_with_a_stricter_level(stages_have_run, params):
    stages_have_run(finetune_output={"wrong": range(20)}, finetune_fc={"wrong": range(26)})
    write_stage("finetune_all", TARGET, wrong=range(40), parameters=900)
    variant = yaml.safe_load(Path("params.yaml").read_text())["finetune_fc"]
    answer = report.answer_better(read([*STAGES, "finetune_all"]), params(finetune_all=variant))
    assert "for 3 comparisons" in answer
    assert "below 0.0167" in answer
    assert "`finetune_output` and `finetune_fc`: **no difference shown**" in answer  # p = 0.031
    assert "**`finetune_output` is better than `finetune_all`**" in answer
    assert "**`finetune_fc` is better than `finetune_all`**" in answer


def test_a_single_variant_is_compared_with_nothing(stages_have_run):
    params = stages_have_run()
    markdown = report.text(read(STAGES[:2]), params)
    assert "nothing to compare it with" in section(markdown, "Which fine-tuning is better, and why?")
    assert "finetune_fc" not in markdown.split("## What was run")[0]


def test_third_variant_is_in_every_table_and_figure(stages_have_run, params, main):
    stages_have_run()
    section_of_it = yaml.safe_load(Path("params.yaml").read_text())["finetune_fc"] | {"trainable": ["fc1", "output"]}
    params(finetune_third=section_of_it)
    write_stage("finetune_third", TARGET, parameters=300, seconds=1.0)
    markdown = main(*STAGES, "finetune_third")
    assert Path("reports/figures/confusion_finetune_third.png").stat().st_size > 1000
    assert "(figures/confusion_finetune_third.png)" in markdown
    assert "`finetune_third`: conv1, conv2, fc2" in section(markdown, "Why is fine-tuning faster?")
    assert list(json.loads(Path("reports/metrics.json").read_text())) == [*STAGES, "finetune_third"]


def test_parameters_are_counted_and_compared(stages_have_run):
    stages_have_run()
    assert "- `finetune_fc`: 200 (20 % of `pretrain`'s)" in report.answer_parameters(read())


@pytest.mark.parametrize("slower", [{}, {"epochs": 6, "seconds": 12.0}])
def test_faster_is_never_claimed_of_a_slower_run(stages_have_run, slower):
    params = stages_have_run(pretrain={"seconds": 5.9}, finetune_fc=slower)
    answer = report.answer_faster(read(), params)
    assert "1.02 times the cost of `pretrain`" in answer
    assert "no fine-tuning was faster" in answer
    assert "computed once" not in answer
    assert answer.count("faster") == 1


def test_what_was_saved_is_said_of_the_faster_run_only(stages_have_run):
    params = stages_have_run(pretrain={"seconds": 12.0}, finetune_fc={"seconds": 12.1})
    answer = report.answer_faster(read(), params)
    assert "`finetune_output`: 3 epochs of 90 images in 6.0 s, 22222 µs an image and epoch: 0.50 times" in answer
    assert "(`finetune_output`: conv1, conv2, fc1, fc2)" in answer
    assert "computed once" in answer
    assert "no fine-tuning was faster" not in answer


def test_times_are_compared_by_image_and_epoch(stages_have_run):
    params = stages_have_run(pretrain={"epochs": 1, "seconds": 4.0}, finetune_output={"epochs": 4, "seconds": 8.0})
    assert "0.50 times the cost of `pretrain`" in report.answer_faster(read(), params)


def test_pretraining_without_epochs_leaves_gaps_and_no_nan(stages_have_run, main):
    stages_have_run(pretrain={"epochs": 0, "seconds": 0.0})
    markdown = main()
    assert only_numbers(Path("reports/metrics.json").read_text())["pretrain"]["train_accuracy"] is None
    assert pd.read_csv("reports/summary.csv")["Train Accuracy"].isna().tolist() == [True, False, False]
    assert tables(markdown)[0][1][3] == "none"
    assert not re.search(r"\b(nan|NaN|None|inf)\b", markdown)
    assert mpl.image.imread("reports/figures/curves.png").ndim == 3
    assert "times the cost" not in section(markdown, "Why is fine-tuning faster?")


MATHEMATICS = ["US$", "CA$", "$\\frac$", "x^2", "{y}", "\\alpha"]


@pytest.mark.parametrize(
    "names",
    [
        ["None", "NA", "null", "true", "0x10", "inf"],
        ["007", "1e3", "2.50", "3.0", "-1", "nan"],
        ["a|b", "c\\d", "<unk>", "[PAD]", "&amp;", "50 %"],
        ["*a*", "_b_", "`c`", "~~d~~", "# e", "snake_case_name"],
        MATHEMATICS,
        ["Straße", "a, b", '"c"', "d;e", "it's", "f g"],
    ],
    ids=" ".join,
)
def test_any_class_name_survives(stages_have_run, without_figures, main, names):
    source, target = names[:3], names[3:]
    stages_have_run(target, source, finetune_fc={"wrong": range(60)})
    markdown = main()
    *_, per_class = tables(markdown)
    assert [row[1] for row in per_class[1:]] == source + target + target
    assert {row[-1] for row in per_class[1:]} == {"20"}
    first = next(token for token in MarkdownIt().parse(markdown) if "Pretrained on" in token.content)
    assert reads(first) == f"Pretrained on {', '.join(source)}; fine-tuned on {', '.join(target)}."
    assert json.loads(Path("reports/metrics.json").read_text())["finetune_fc"]["test_accuracy"] == 0


def test_class_names_are_drawn_as_they_are(stages_have_run):
    stages_have_run(MATHEMATICS[:3], MATHEMATICS[3:])
    assert report.write_figures(read()) == FIGURES


def test_accuracy_by_class_is_that_of_the_class(stages_have_run):
    stages_have_run(finetune_fc={"wrong": [0, 3, 6, 9, 12, 1]})
    table = report.per_class_accuracy(read()[2])
    assert table.index.tolist() == TARGET
    assert table["accuracy"].tolist() == [15 / 20, 19 / 20, 1]
    assert table["images"].tolist() == [20, 20, 20]
    assert (table["low"] < table["accuracy"]).all()
    assert table.loc["fox", ["low", "high"]].tolist() == pytest.approx([0.5313, 0.8881], abs=1e-4)


def test_confusion_counts_the_test_images(stages_have_run):
    stages_have_run(finetune_fc={"wrong": [0, 3, 1]})
    result = read()[2]
    texts = [text.get_text() for text in figures.confusion("finetune_fc", result.predictions, TARGET).axes[0].texts]
    assert texts == ["18", "2", "0", "0", "19", "1", "0", "0", "20"]


def test_mistakes_are_the_most_confident_ones_with_their_images(stages_have_run):
    stages_have_run(finetune_fc={"wrong": [3, 50]})
    result = read()[2]
    axes = figures.mistakes({"finetune_fc": result.half.x_test}, {"finetune_fc": result.predictions}).axes
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes if ax.images]
    assert len(shown) == 2
    assert np.array_equal(shown[0], result.half.x_test[50])
    assert np.array_equal(shown[1], result.half.x_test[3])
    assert axes[0].get_title() == "hen\ntaken for\nfox 91 %"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_drawn(stages_have_run, channels):
    stages_have_run(half={"channels": channels})
    results = read()
    figure = figures.mistakes({"a": results[0].half.x_test}, {"a": results[0].predictions})
    figures.save(figure, Path("mistakes.png"))
    assert mpl.image.imread("mistakes.png").shape[1] > 200


def test_a_model_without_mistakes_is_drawn(stages_have_run, main):
    stages_have_run(pretrain={"wrong": []}, finetune_output={"wrong": []}, finetune_fc={"wrong": []})
    markdown = main()
    assert "no difference shown" in markdown
    assert "is better than" not in markdown


@pytest.mark.parametrize("validation", [0, 30])
def test_it_is_said_on_which_images_the_curves_are_drawn(stages_have_run, validation):
    params = stages_have_run(half={"validation": validation})
    said = report.what_was_run(read(), params)
    assert ("curves: drawn on the test images" in said) == (validation == 0)
    assert f"images: 90 train, {validation} validation, 60 test" in said
    assert all(("validation_accuracy" in result.metrics) == (validation > 0) for result in read())


def test_settings_that_differ_from_the_notebooks_are_listed(stages_have_run, params):
    stages_have_run()
    assert "differ from the notebook's: none\n" in report.what_was_run(read(), params())
    changed = params(seed=7, **{"finetune_fc.epochs": 20, "model.rescale": True})
    said = report.what_was_run(read(), changed)
    assert "- seed: 7\n" in said
    assert "differ from the notebook's: `seed`: 7, `model.rescale`: True, `finetune_fc.epochs`: 20\n" in said


def test_each_set_up_is_named_with_its_stages(stages_have_run):
    params = stages_have_run(finetune_fc={"set_up": {"cpu": "another CPU", "threads": 8}})
    said = report.what_was_run(read(), params)
    assert "- set-up of pretrain, finetune_output: cpu a CPU, threads 2\n" in said
    assert "- set-up of finetune_fc: cpu another CPU, threads 8" in said


def test_it_is_said_that_one_run_has_no_control(stages_have_run):
    params = stages_have_run()
    markdown = report.text(read(), params)
    assert "\nPretrained on " in markdown
    assert "`dvc exp run -S pretrain.epochs=0`" in section(markdown, "What was the transfer worth?")


def test_a_control_is_said_to_be_one(stages_have_run):
    params = stages_have_run(pretrain={"epochs": 0, "seconds": 0.0})
    markdown = report.text(read(), params)
    assert "\nRandom features, not trained on " in markdown
    assert "This run is a control" in section(markdown, "What was the transfer worth?")
    assert "dvc exp run -S pretrain.epochs=0" not in markdown


INPUTS = [f"reports/{kind}/finetune_fc.{end}" for kind, end in (("history", "csv"), ("predictions", "csv"))]
INPUTS += ["reports/record/finetune_fc.json", "reports/timing/finetune_fc.json", "data/prepared/target.npz"]
DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "other text": lambda content: b"a,b\n1,2\n",
    "other JSON": lambda content: b"[]",
    "bytes": lambda content: b"\xff\xfe\x00\x01" * 9,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", INPUTS)
def test_damaged_input_is_refused_in_one_line(stages_have_run, without_figures, main, file, damage):
    stages_have_run()
    content = DAMAGES[damage](Path(file).read_bytes())
    if content is None:
        Path(file).unlink()
    else:
        Path(file).write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main()
    assert re.fullmatch(r"error: [^\n]*(finetune_fc|target\.npz)[^\n]*", str(stop.value))
    assert not Path("reports/report.md").exists()


def test_predictions_of_other_classes_are_refused(stages_have_run):
    stages_have_run()
    write_stage("finetune_fc", SOURCE)
    with pytest.raises(UserError, match="finetune_fc"):
        read()


@pytest.mark.parametrize("arguments", [["pretrain"], ["pretrain", "finetune_unheard"]])
def test_stages_that_did_not_run_are_refused_in_one_line(stages_have_run, main, arguments):
    stages_have_run()
    with pytest.raises(SystemExit, match=r"^error: [^\n]*expected [^\n]*$"):
        main(*arguments)


def test_every_setting_has_the_notebooks_value_as_its_default():
    """Its values in params.yaml may have been changed by a user; the keys of the network's stages stay."""
    assert set(notebook.SETTINGS) <= set(dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))))
    assert dict(leaves(Settings.model_validate(nested(notebook.SETTINGS)).model_dump())) == notebook.SETTINGS


def test_published_table_is_the_notebooks():
    assert notebook.PUBLISHED == {
        "pretrain": {"parameters": 1633733, "minutes": 8.37, "train_accuracy": 0.8472, "test_accuracy": 0.7662},
        "finetune_output": {"parameters": 325, "minutes": 4.23, "train_accuracy": 0.57032, "test_accuracy": 0.606},
        "finetune_fc": {"parameters": 8581, "minutes": 4.32, "train_accuracy": 0.66004, "test_accuracy": 0.6904},
    }
