"""The report's numbers and wording: what the stages measured, and no conclusion that the numbers do not support."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stage_outputs import SOURCE, STAGES, TARGET, UNTRAINED, make_results, make_task, write
from stages import report
from stages.predictions import accuracy_by_threshold, lowest_threshold
from stages.reporting import notebook, page, quality
from stages.settings import Model, Settings
from stages.shared.tasks import Split, write_task


def rendered(results, params: Settings | None = None) -> str:
    return page.render_markdown(results, params or Settings(), quality.check(results))


def test_numbers_are_those_of_the_stages():
    results = make_results(pretrain={"seconds": 90.0, "wrong": range(24)}, finetune_output={"wrong": []})
    markdown, summary = rendered(results), results.summary
    values = results.source.metrics | results.source.details
    keys = ["trainable_parameters", "train_accuracy", "test_accuracy", "balanced_accuracy", "macro_f1"]
    assert [values[key] for key in keys] == pytest.approx([1000, 0.701, 0.6, 0.6, 0.6])
    columns = ["Number of Trainable Parameters", "Training Time (min)", "Train Accuracy", "Test Accuracy"]
    assert list(summary) == ["Model Name", *columns]  # the notebook's
    assert summary.iloc[0].tolist() == ["pretrain", 1000, 1.5, pytest.approx(0.701), 0.6]
    assert "\n| pretrain | 1,000 | 90.0 s | 70.1% | 60.0% | 47.4% to 71.4% |  |  |" in markdown  # Wilson, 36/60
    assert "\n| finetune_output | 50 | 5% | conv1, conv2, fc1, fc2 |" in markdown
    assert "\n| ant | pretrain | 20 | 60.0% (38.7% to 78.1%) | 60.0% (38.7% to 78.1%) |" in markdown  # Wilson, 12/20
    assert "`pretrain`: mean confidence 70.0%, accuracy 60.0%: overconfident by 10.0 points" in markdown
    assert "`finetune_fc`: mean confidence 70.0%, accuracy 83.3%: underconfident by 13.3 points" in markdown


def test_early_stopping_reports_the_epoch_whose_weights_were_kept():
    results = make_results(sizes={"validation": 6})  # 2 are wrong
    results.source.history.insert(1, "kept", [0.0, 1.0, 0.0])
    assert "`pretrain` trained for 3 epochs and kept the weights of epoch 2," in rendered(results)
    values = results.source.metrics | results.source.details
    found = [values[key] for key in ("kept_epoch", "train_accuracy", "validation_accuracy")]
    assert found == pytest.approx([2, 0.601, 4 / 6])


def first_sentence(results, params: Settings | None = None) -> str:
    return rendered(results, params).splitlines()[2]


def test_report_begins_with_the_gains_of_the_transfer():
    worth = {"finetune_output": {"wrong": range(25), "control": range(10)}, "finetune_fc": {"control": range(4, 30)}}
    results = make_results(**worth)
    assert first_sentence(results).startswith(
        "**The features learned on ant, bee, cow are worth -25.0 points of test accuracy to `finetune_output` (95% "
        # Clopper and Pearson's intervals of 0 of 15 and 20 of 24, twice that minus 1, of 60 images
        "interval -25.0 to -14.1, p < 0.001) and +26.7 points to `finetune_fc` (95% interval +10.1 to +36.2, "
        "p = 0.0015)**"
    )
    assert "\n| finetune_fc | 200 | 6.0 s | 70.0% | 83.3% | 72.0% to 90.7% | 56.7% | +26.7 |\n" in rendered(results)
    assert "another seed gives other numbers" in first_sentence(results)
    assert "from scratch" not in rendered(results)
    everything = Settings().finetune_fc.model_copy(update={"trainable": Settings().model.layer_names})
    assert "its control is training from scratch: 83.3% against 56.7%" in rendered(
        results, Settings(finetune_fc=everything)
    )


def test_report_warns_of_a_control_that_hardly_does_better_than_guessing():
    markdown = rendered(make_results(finetune_output={"control": range(38)}, finetune_fc={"control": range(34)}))
    assert "The control of `finetune_output` (36.7%) hardly does better than guessing (33.3%)" in markdown
    assert "The control of `finetune_fc`" not in markdown


def test_report_says_at_its_beginning_that_a_model_is_not_shown_to_be_better_than_guessing():
    few = make_results(sizes={"test": 24}, finetune_fc={"wrong": range(15)})
    beginning = rendered(few).partition("![")[0]
    assert "**`finetune_fc` is not shown to be better than guessing**: it is right on 37.5% of 24 test" in beginning
    assert "; always guessing the commonest class is right on 33.3%" in beginning
    assert beginning.count("guessing**") == 1


def test_report_says_why_it_has_no_control():
    assert "no control was trained. Set `control: true`" in first_sentence(make_results())
    untrained = make_results(pretrain=UNTRAINED)
    assert "ran no epochs, so random features were fine-tuned. Each fine-tuning is its own" in first_sentence(untrained)
    assert not re.search(r"\b(nan|NaN|None|inf|Infinity)\b", rendered(untrained) + json.dumps(untrained.source.metrics))
    weights = Settings(model=Model(backbone="ResNet50V2", weights="resnet.h5"))
    with_weights = make_results(pretrain=UNTRAINED, finetune_fc={"control": range(30)})
    assert "The features that ResNet50V2 came with are worth +33.3" in first_sentence(with_weights, weights)


@pytest.mark.parametrize(
    ("counts", "reported"), [([60, 20, 20], []), ([61, 20, 30], [("source", "61 training images of ant, 20 of bee")])]
)
def test_imbalance_of_more_than_three_to_one_is_reported_with_the_classes(counts, reported):
    results, y = make_results(), np.repeat(np.arange(3), counts)
    task = replace(results.source.task, train=Split(np.zeros((len(y), 6, 6, 3), np.uint8), y, y.astype(str)))
    markdown = rendered(replace(results, source=replace(results.source, task=task)))
    assert re.findall(r"The (\w+) classes are imbalanced\*\*: (.+?)\.", markdown) == reported


def test_model_that_predicts_one_class_is_reported_to_have_learned_nothing():
    results = make_results()
    one_answer = replace(results.source, predictions=results.source.predictions.assign(predicted="bee"))
    text = rendered(replace(results, source=one_answer))
    assert "**`pretrain` learned nothing**: it predicts bee for every test image." in text
    assert "`-S seed=2`, or standardised pixels, `-S model.rescale=true`" in text
    untrained = replace(one_answer, history=one_answer.history[:0])
    assert "learned nothing" not in rendered(results) + rendered(replace(results, source=untrained))


def test_notebooks_results_are_shown_for_its_own_images_only(tmp_path, monkeypatch):
    runs = ".99,.5,.96\n.98,.51,.95\n.2,.2,.2\n1,.49,.94\n.99,,\n"  # one learned nothing, one is only pretrained
    (tmp_path / "runs.csv").write_text(f"# a machine\n{','.join(STAGES)}\n{runs}")
    monkeypatch.setattr(notebook, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(quality, "MAX_IMAGES", 0)
    (first, second), sizes = notebook.CLASSES, {"train": 25_000, "test": 5_000}
    markdown = rendered(make_results(first, second, sizes, finetune_fc={"wrong": range(1000)}))
    for text in (
        "(a machine)",
        "Left out: 1 more that learned nothing",
        # Three runs 0.01 apart: one more is within 0.0497 of their mean; four: 0.0291.
        "| pretrain | 99.8% | 76.6% | 99.0% ± 0.8 | 4 | 96.1% to 100.0%: inside |",
        "| finetune_output | 99.8% | 60.6% | 50.0% ± 1.0 | 3 | 45.0% to 55.0%: +44.8 points above |",
        "| finetune_fc | 80.0% | 69.0% | 95.0% ± 1.0 | 3 | 90.0% to 100.0%: -10.0 points below |",
    ):
        assert text in markdown
    for other in (make_results(first, second, sizes | {"test": 4_999}), make_results(first, second[::-1], sizes)):
        assert not re.search("published|notebook's code", rendered(other))


@pytest.mark.parametrize(
    ("wrong", "conclusion", "evidence"),
    [
        ((25, 20), "`{0}` and `{1}`: **no significant difference**: 58.3% against 66.7%", (0, 5, 0.062)),
        ((26, 20), "**`{1}` is better than `{0}`**: 66.7% against 56.7%", (0, 6, 0.031)),
        ((20, 26), "**`{0}` is better than `{1}`**: 66.7% against 56.7%", (6, 0, 0.031)),
    ],
)
def test_only_a_significant_difference_makes_a_model_better(wrong, conclusion, evidence):
    first, second = STAGES[1:]
    markdown = rendered(make_results(**{first: {"wrong": range(wrong[0])}, second: {"wrong": range(wrong[1])}}))
    assert f"\n{conclusion}".format(first, second) in markdown
    only = "only `{}` classifies correctly: {}; only `{}`: {} (p = {})"
    assert only.format(first, evidence[0], second, *evidence[1:]) in markdown


def test_reason_is_given_only_if_the_numbers_support_it():
    results = make_results(finetune_output={"wrong": range(40)})
    assert "held back" in rendered(results)
    recipe = Settings().finetune_fc.model_copy(update={"epochs": 3, "optimizer": "adam"})
    other_recipe = rendered(results, Settings(finetune_fc=recipe))
    assert "`epochs`, `optimizer`: these numbers alone do not explain the difference" in other_recipe
    fewer_layers_better = rendered(make_results(finetune_fc={"wrong": range(40)}))
    fits_no_better = rendered(make_results(finetune_output={"wrong": range(40), "epochs": 6}))
    assert "held back" not in other_recipe + fewer_layers_better + fits_no_better


def test_lowest_threshold_reaches_the_accuracy_on_the_images_above_it():
    probability, correct = np.array([0.9, 0.5, 0.8, 0.6, 0.7, 0.7]), np.array([1, 0, 0, 1, 1, 1], bool)
    curve = accuracy_by_threshold(probability, correct)
    assert curve["threshold"] == [0, 0.6, 0.7, 0.8, 0.9]  # 0: every image is answered
    assert curve["accuracy"] == pytest.approx([4 / 6, 4 / 5, 3 / 4, 1 / 2, 1])
    assert curve["answered"] == pytest.approx([1, 5 / 6, 4 / 6, 2 / 6, 1 / 6])
    assert [lowest_threshold(curve, wanted) for wanted in (0.5, 0.8, 0.81, 1.01)] == [0, 0.6, 0.9, None]
    many = accuracy_by_threshold(np.linspace(0.2, 1, 12345), np.ones(12345, bool))
    assert np.allclose(np.diff(many["answered"]), -0.01, atol=2e-4)


def test_settings_and_environments_of_the_run_are_listed():
    results = make_results(sizes={"validation": 30}, finetune_fc={"cpu": "another CPU"})
    markdown = rendered(results)
    assert "differ from the notebook's: none\n" in markdown
    assert "images: 90 train, 30 validation, 60 test" in markdown
    assert "- environment of pretrain, finetune_output: cpu a CPU, threads 2\n" in markdown
    assert "- environment of finetune_fc: cpu another CPU, threads 2\n" in markdown
    assert "`seed`: 7, `model.rescale`: true\n" in rendered(results, Settings(seed=7, model=Model(rescale=True)))


@pytest.mark.parametrize("damage", [None, "half", "one bit", b"a,b\n1,2\n", b"[]", b"\xff\xfe\x00\x01" * 9])
def test_damaged_input_is_refused_in_one_line(params, damage):
    write(make_results())
    reports = [path for path in Path("reports").rglob("*.*") if "finetune_fc" in str(path)]
    assert len(reports) == 5
    for file in (*reports, Path("data/prepared/target.npz")):
        before = file.read_bytes()
        middle = len(before) // 2
        other = before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
        content = {"half": before[:middle], "one bit": other}.get(damage, damage)
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(SystemExit, match=r"^error: [^\n]*(finetune_fc|target\.npz)[^\n]*$"):
            report.main()
        file.write_bytes(before)


def test_predictions_of_other_images_are_refused_in_one_line(params):
    write(make_results(target=SOURCE))
    write_task("target", make_task(TARGET))
    with pytest.raises(SystemExit, match=r"finetune_output: predictions of other images; expected the out[^;]*$"):
        report.main()
