"""The report's numbers and wording: what the stages measured, and no conclusion that the numbers do not support."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stage_outputs import CONTROL, SOURCE, STAGES, TARGET, make_results, make_task, write
from stages import report
from stages.reporting import notebook, page
from stages.settings import Model, Settings
from stages.shared.tasks import Split, write_task


def rendered(results, params: Settings | None = None) -> str:
    return page.render_markdown(results, params or Settings())


def test_numbers_are_those_of_the_stages():
    results = make_results(pretrain={"seconds": 90.0, "wrong": range(24)}, finetune_output={"wrong": []})
    markdown, summary = rendered(results), results.summary
    keys = ["trainable_parameters", "train_accuracy", "test_accuracy", "balanced_accuracy", "macro_f1", "test_loss"]
    assert [results.source.metrics[key] for key in keys] == pytest.approx([1000, 0.701, 0.6, 0.6, 0.6, 0.75])
    columns = ["Number of Trainable Parameters", "Training Time (min)", "Train Accuracy", "Test Accuracy"]
    assert list(summary) == ["Model Name", *columns]  # the notebook's
    assert summary.iloc[0].tolist() == ["pretrain", 1000, 1.5, pytest.approx(0.701), 0.6]
    assert "\n| pretrain | 1,000 | 90.0 s | 0.7010 | 0.6000 | 0.4737 to 0.7143 | 0.7500 |" in markdown  # Wilson, 36/60
    assert "\n| finetune_output | 50 | 5% | conv1, conv2, fc1, fc2 |" in markdown
    assert "\n| pretrain | ant | 0.600 | 0.387 to 0.781 | 20 |" in markdown  # Wilson, 12/20
    assert "`pretrain`: mean confidence 70.0%, accuracy 60.0%: overconfident by 10.0 points" in markdown
    assert "`finetune_fc`: mean confidence 70.0%, accuracy 83.3%: underconfident by 13.3 points" in markdown


def test_early_stopping_reports_the_epoch_whose_weights_were_kept():
    results = make_results(sizes={"validation": 6})
    results.source.history.insert(1, "kept", [0.0, 1.0, 0.0])
    results.source.history["val_accuracy"] = [0.1, 0.2, 0.3]
    assert "`pretrain` trained for 3 epochs and kept the weights of epoch 2," in rendered(results)
    keys = ["kept_epoch", "train_accuracy", "validation_accuracy"]
    assert [results.source.metrics[key] for key in keys] == [2, pytest.approx(0.601), 0.2]
    assert "kept_epoch" not in results.tuned[0].metrics


def test_control_without_pretraining_is_called_one_and_has_gaps_instead_of_nan():
    assert "`dvc exp run -S pretrain.epochs=0`" in rendered(make_results())
    control = make_results(pretrain=CONTROL)
    assert "Random features, no pretraining on ant, bee, cow" in rendered(control)
    assert not re.search(r"\b(nan|NaN|None|inf|Infinity)\b", rendered(control) + json.dumps(control.source.metrics))


@pytest.mark.parametrize(
    ("counts", "reported"), [([60, 20, 20], []), ([61, 20, 30], [("source", "61 training images of ant, 20 of bee")])]
)
def test_imbalance_of_more_than_three_to_one_is_reported_with_the_classes(counts, reported):
    results, y = make_results(), np.repeat(np.arange(3), counts)
    task = replace(results.source.task, train=Split(np.zeros((len(y), 6, 6, 3), np.uint8), y))
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
    (first, second), sizes = notebook.CLASSES, {"train": 25_000, "test": 5_000}
    markdown = rendered(make_results(first, second, sizes, finetune_fc={"wrong": range(1000)}))
    for text in (
        "| 1,633,733 | 8.37 min | 0.8472 | 0.7662 |",
        "(a machine)",
        "Left out: 1 more that learned nothing",
        # Three runs 0.01 apart: one more is within 0.0497 of their mean; four: 0.0291.
        "| pretrain | 4 | 0.9900 ± 0.0082 | 0.9609 to 1.0000 | 0.9980, inside |",
        "| finetune_output | 3 | 0.5000 ± 0.0100 | 0.4503 to 0.5497 | 0.9980, 0.4483 above |",
        "| finetune_fc | 3 | 0.9500 ± 0.0100 | 0.9003 to 0.9997 | 0.8000, 0.1003 below |",
    ):
        assert text in markdown
    for other in (make_results(first, second, sizes | {"test": 4_999}), make_results(first, second[::-1], sizes)):
        assert not re.search("published|notebook's code", rendered(other))


@pytest.mark.parametrize(
    ("wrong", "conclusion", "evidence"),
    [
        ((25, 20), "`{0}` and `{1}`: **no significant difference**: 0.5833", "0; only `{1}`: 5 (p = 0.062)"),
        ((26, 20), "**`{1}` is better than `{0}`**: 0.6667 against 0.5667", "0; only `{1}`: 6 (p = 0.031)"),
        ((20, 26), "**`{0}` is better than `{1}`**: 0.6667 against 0.5667", "6; only `{1}`: 0 (p = 0.031)"),
    ],
)
def test_only_a_significant_difference_makes_a_model_better(wrong, conclusion, evidence):
    stages = STAGES[1:]
    markdown = rendered(make_results(**{stage: {"wrong": range(n)} for stage, n in zip(stages, wrong, strict=True)}))
    assert f"\n{conclusion}".format(*stages) in markdown
    assert f"only `{{0}}` classifies correctly: {evidence}".format(*stages) in markdown


def test_reason_is_given_only_if_the_numbers_support_it():
    results = make_results(finetune_output={"wrong": range(40)})
    assert "held back" in rendered(results)
    recipe = Settings().finetune_fc.model_copy(update={"epochs": 3, "optimizer": "adam"})
    other_recipe = rendered(results, Settings(finetune_fc=recipe))
    assert "`epochs`, `optimizer`: these numbers alone do not explain the difference" in other_recipe
    fewer_layers_better = rendered(make_results(finetune_fc={"wrong": range(40)}))
    fits_no_better = rendered(make_results(finetune_output={"wrong": range(40), "epochs": 6}))
    assert "held back" not in other_recipe + fewer_layers_better + fits_no_better


def test_settings_and_environments_of_the_run_are_listed():
    results = make_results(sizes={"validation": 30}, finetune_fc={"cpu": "another CPU"})
    markdown = rendered(results)
    assert "differ from the notebook's: none\n" in markdown
    assert "images: 90 train, 30 validation, 60 test" in markdown
    assert "- environment of pretrain, finetune_output: cpu a CPU, threads 2\n" in markdown
    assert "- environment of finetune_fc: cpu another CPU, threads 2\n" in markdown
    assert "`seed`: 7, `model.rescale`: true\n" in rendered(results, Settings(seed=7, model=Model(rescale=True)))


@pytest.mark.parametrize("damage", [None, b"", "half", b"a,b\n1,2\n", b"[]", b"\xff\xfe\x00\x01" * 9])
def test_damaged_input_is_refused_in_one_line(params, damage):
    write(make_results())
    reports = [path for path in Path("reports").rglob("*.*") if "finetune_fc" in str(path)]
    assert len(reports) == 5
    for file in (*reports, Path("data/prepared/target.npz")):
        before = file.read_bytes()
        content = before[: len(before) // 2] if damage == "half" else damage
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(SystemExit, match=r"^error: [^\n]*(finetune_fc|target\.npz)[^\n]*$"):
            report.main()
        file.write_bytes(before)


def test_predictions_of_other_images_are_refused_in_one_line(params):
    write(make_results(target=SOURCE))
    write_task("target", make_task(TARGET))
    with pytest.raises(SystemExit, match=r"finetune_output: predictions of other images; expected the out[^;]*$"):
        report.main()
