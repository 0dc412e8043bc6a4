"""Conclusions of studies: intervals, tests, choices, and what their pages say and show."""

import itertools

import numpy as np
import pandas as pd
import pytest

from repository import ROOT
from stages.shared.yaml_files import parse_yaml
from studies import analysis, charts, experiments, page
from studies.plan import Choice, Plan, Question
from studies.repository import Experiment

MNIST, PHOTOS = (parse_yaml((ROOT / f"studies/{name}.yaml").read_text()) for name in ("mnist", "photos"))
STUDY = Plan.model_validate(MNIST)
OUTPUT, LAST_TWO = STUDY.choices[0].among
RANDOM_OUTPUT = STUDY.questions[0].first
RUNS = {"count": 6, "seeds": [1, 2], "commit": "a", "datasets": ["x.npz", ""], "test_images": [500], "splits": 1,
        "changed": {}, "environments": {"cpu": 6}, "mixed_environments": [("?", 1, 3)]}  # fmt: skip


def table_of(accuracies: dict[str, list[float]], **columns) -> pd.DataFrame:
    """Return `analysis.results` of runs with these test accuracies, by seed."""
    rows = [
        {"model": model, "images": 20, "seed": seed, "accuracy": value, "validation": np.nan}
        for model, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**columns)


def render(study: Plan, table: pd.DataFrame) -> str:
    values = {"command": "x", "failed": {"run": "why"}, "left_out": ["late_run"], "too_few": [50, 100]}
    return page.render(study, table, **values, charts=[], runs=RUNS)


@pytest.mark.parametrize("differences", [[1, 2, 3, -1], [1, 2, 3, 4, 5, 6], [0, 0, 0], [1, 0, -1, 1, 7, 5, 5, 5]])
def test_the_sign_flip_test_counts_every_flip_and_ties_as_ties(differences):
    signs = np.array(np.meshgrid(*[[1, -1]] * len(differences))).reshape(len(differences), -1).T
    expected = (np.abs(signs @ differences) >= abs(sum(differences))).mean()
    first = np.array([3001, 3107, 2903, 3019, 3251, 2899, 3011, 3007])[: len(differences)]
    assert analysis.sign_flip_p(pd.Series((first + differences) / 5000 - first / 5000)) == pytest.approx(expected)


@pytest.mark.parametrize(("seeds", "verdict"), [(6, "**better**"), (5, "inconclusive"), (1, "inconclusive")])
def test_a_clear_difference_needs_six_seeds(seeds, verdict):
    table = table_of({"a": [0.5, 0.51, 0.52, 0.5, 0.49, 0.5][:seeds], "b": [0.7, 0.72, 0.71, 0.7, 0.7, 0.69][:seeds]})
    table = pd.concat([table, table_of({"b": [0.1] * 9}).tail(1)])  # a seed that one model lacks
    questions = [Question(ask="?", first="a", second="b"), Question(ask="?", first="b", second="a")]
    answer, reverse = (found.loc[0] for found in analysis.compare_all(table, questions))
    assert (answer["n"], answer["verdict"]) == (seeds, verdict)
    assert reverse["verdict"] == verdict.replace("better", "worse")
    if seeds == 6:
        half = 2.570582 * np.std([20, 21, 19, 20, 21, 19], ddof=1) / 100 / 6**0.5  # Student's
        assert list(answer[["difference", "low", "high"]]) == pytest.approx([0.2, 0.2 - half, 0.2 + half])


@pytest.mark.parametrize(("seeds", "models", "text"), [(8, 9, "at least 2 "), (6, 1, "at least 1 "), (5, 3, "too few")])
def test_many_comparisons_are_corrected_and_the_page_says_how_small_p_must_be(seeds, models, text):
    table = table_of({f"m{i}": [0.9 * (i == 1) + seed / 100 for seed in range(seeds)] for i in range(models + 1)})
    answers = analysis.compare_all(table, [Question(ask="?", first="m0", second=f"m{i + 1}") for i in range(models)])
    assert answers[0].loc[0, "adjusted"] == pytest.approx(models * 2 / 2**seeds)
    assert text in page.smallest_p(answers)


def test_a_choice_on_test_images_says_so_and_one_on_validation_images_hides_the_rejected(monkeypatch):
    table = table_of({OUTPUT: [0.1, 0.2, 0.9], LAST_TWO: [0.3, 0.4]})
    ranking, validated = analysis.choose(table, STUDY.choices[0], 20)
    assert (ranking.index[0], set(ranking["n"]), validated) == (LAST_TWO, {2}, False)  # the seeds that both have
    assert "This choice was made on the test images" in render(STUDY, table)
    table = table_of({OUTPUT: [0.1, 0.2], LAST_TWO: [0.8, 0.9]}, validation=[0.7, 0.7, 0.6, 0.6])
    monkeypatch.setattr(Plan, "asked", {OUTPUT})  # the plan's question would have to show both
    text = render(STUDY, table)
    assert f"Chosen on validation images alone: **{OUTPUT}**. Its test accuracy: 15.0%" in text
    assert "85.0" not in text


def test_a_question_about_a_choice_compares_the_model_chosen_at_each_number_of_images():
    sizes = {n: {"data.target_per_class": n} for n in (20, 30)}
    question = {"ask": "?", "first": RANDOM_OUTPUT, "second": "tuned"}
    changes = {"choices": [{"choose": "tuned", "among": [OUTPUT, LAST_TWO]}], "questions": [question], "seeds": [1, 2]}
    study = Plan.model_validate(MNIST | changes | {"images_per_class": sizes})
    done = {}  # where the better test accuracy has the worse validation accuracy
    for images, seed in itertools.product(sizes, study.seeds):
        tuned = [(0.9, 0.7), (0.4, 0.8)][:: 1 if images == 20 else -1]
        for run, measured in (("pretrained", tuned), ("random", [(0.1, 0.1)] * 2)):
            accuracies = [dict(zip(("test_accuracy", "validation_accuracy"), both, strict=True)) for both in measured]
            metrics = dict(zip(("finetune_output", "finetune_fc"), accuracies, strict=True)) | {"pretrain": {}}
            name = f"{experiments.experiment_name('x', run, images, seed)}_a1b2c3"
            done[name] = Experiment("0", {stage: found | {"train_seconds": 1.0} for stage, found in metrics.items()})
    table = analysis.results(study, "x", done)
    chosen = table[table["model"] == "tuned"].drop_duplicates("images").set_index("images")["stage"]
    assert chosen.to_dict() == {20: "finetune_fc", 30: "finetune_output"}
    (answer,) = analysis.compare_all(table, study.questions)
    assert list(answer["difference"]) == pytest.approx([0.3, 0.3])
    shown = analysis.hide_rejected(study, table)
    assert set(shown["model"]) == {RANDOM_OUTPUT, "last two layers, random features", "tuned"}
    assert "Its test accuracy: 40.0%" in render(study, table)
    assert "90.0" not in render(study, table)


@pytest.mark.filterwarnings("error")
def test_figures_show_every_model_also_of_one_number_of_images_and_of_three_ways_to_fine_tune():
    ways = dict.fromkeys(("output", "last two", "all"), STUDY.models["output layer"])
    study = STUDY.model_copy(update={"images_per_class": {100: {}}, "models": ways})
    names = [f"{way}, {origin}" for way in ways for origin in ways[way]]
    table = table_of({name: [0.1, 0.2, 0.3] for name in names}, images=100, seconds=60.0)
    drawn = charts.draw(study, table, {})
    assert set(drawn) == {"accuracy_by_images", "accuracy_by_time", "accuracy_by_layers"}
    (ax,) = drawn["accuracy_by_images"].axes
    assert len({float(line.lines[0].get_xdata()[0]) for line in ax.containers}) == len(names)
    for figure in drawn.values():
        figure.canvas.draw()
        (ax,) = figure.axes
        assert all(ax.bbox.contains(*ax.transData.transform(line.get_xydata()[0])) for line in ax.lines)
    labels = [label.get_text() for label in drawn["accuracy_by_images"].axes[0].get_yticklabels()]
    assert len(set(labels)) == len(labels)
    tuned = {
        "choices": [Choice(choose="tuned", among=names)],
        "questions": [Question(ask="?", first="tuned", second="")],
    }
    drawn = charts.draw(study.model_copy(update=tuned), table_of({"tuned": [0.1, 0.3]}, images=100, seconds=60.0), {})
    assert "accuracy_by_layers" not in drawn


def test_a_page_begins_with_the_way_to_take_its_accuracy_and_the_worth_of_more_images(monkeypatch):
    monkeypatch.setattr(page, "committed_settings", dict)
    monkeypatch.setattr(experiments, "committed_settings", lambda: PHOTOS["settings"] | {"data.test_fraction": 0.2})
    monkeypatch.setattr(analysis, "predictions", lambda row: range(100))
    study = Plan.model_validate(PHOTOS).with_number(40, smallest=40)
    ways, scratch = study.choices[0].among, str(study.choices[0].against)
    few = table_of({ways[2]: [0.5, 0.4, 0.6]}, images=10, validation=0.1)
    tests = {ways[0]: [0.7, 0.9, 0.5], ways[2]: [0.8, 0.7, 0.9], scratch: [0.6, 0.4, 0.8]}
    validation = [0.6, 0.9, 0.5, 0.8, 0.7, 0.9, *[np.nan] * 3]  # the second seed would choose another way
    text = render(study, pd.concat([table_of(tests, images=40).assign(validation=validation), few]))
    answer, _, rest = text.partition("\n- ")
    assert f"Take **{ways[2]}**: on validation images it is the best of 2 ways (3 more have not run yet)" in answer
    assert "its expected accuracy on new pictures is 86.7% (95% interval 72.3 to 100.0)" in answer  # 80, 90, 90
    assert (
        f"Compared with **{scratch}**, it gains +20.0 points (95% interval -4.8 to +44.8): these runs do not" in answer
    )
    assert "The last doubling of the pictures, up to 40 a class, brought +15.0 points (95% interval +15.0" in answer
    assert "these runs do not show that it is worth taking more" not in answer
    assert "\ndvc exp run -S data.validation_fraction=0.0 -S finetune_output.learning_rate=0.02 -S finet" in answer
    assert " -S finetune_fc.start=models/finetune_output.keras " in answer
    assert "50, 100 images per class" in rest
    assert "1 experiments: late_run" in rest
    text = render(study, pd.concat([table_of({ways[0]: [0.7]}, images=n) for n in (25, 40)]))
    assert "on test images it is the best of 1 way (4 more" in text
    assert "70.0% (95% interval 60.4 to 78.1)" in text  # Wilson's
    assert text.count("No run shows yet") == 2
    assert "\n\nTake" not in render(study, few)


def test_pairs_of_runs_from_different_machines_are_named():
    table = table_of({OUTPUT: [0.1, 0.2, 0.3], LAST_TWO: [0.3, 0.4, 0.5]})
    mixed = page.mixed_environments(STUDY, table, pd.Series(["a", "b", "a", "a", "a", "a"]))
    assert mixed == [(STUDY.questions[2].ask, 1, 3)]
    assert page.mixed_environments(STUDY, table, pd.Series(["a", "b", "a", "a", "b", "a"])) == []


def test_a_page_of_too_few_runs_says_so():
    wide = table_of({OUTPUT: [0.1, 0.9], LAST_TWO: [0.8, 0.2]})
    assert analysis.summary(wide)[["low", "high"]].to_numpy().tolist() == [[0, 1], [0, 1]]
    assert analysis.compare(wide, STUDY.questions[2])[["low", "high"]].to_numpy().tolist() == [[-1, 1]]
    text = render(STUDY.model_copy(update={"title": "![a](b)"}), table_of({OUTPUT: [0.1, 0.2, 0.9]}))
    assert text.startswith("# \\!\\[a\\](b)\n")
    assert page.code("`x``") == "``` `x`` ```"
    assert text.count("no runs.") == 3
    assert f"No runs: {LAST_TWO}." in text
    assert "nan" not in text + render(STUDY, table_of({name: [0.1] for name in STUDY.named_models}))
