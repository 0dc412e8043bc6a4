"""Studies without their runs: the plan, and what the runs are said to show."""

import numpy as np
import pandas as pd
import pytest
import yaml

from repository import ROOT
from stages.settings import Settings
from stages.shared.errors import UserError
from studies import analysis, charts, page, plan, runner
from studies.plan import Plan, Question
from studies.repository import Experiment

PLANS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("studies/*.yaml"))}
DIGITS = PLANS["digits"]
STUDY = Plan.model_validate(DIGITS)
OUTPUT, LAST_TWO = STUDY.choices[0].among


def wanted(content: dict, tmp_path, monkeypatch, *changes: str) -> dict:
    """The experiments of a plan file where the default settings are committed."""
    monkeypatch.setattr(plan, "committed_settings", lambda: Settings().by_key())
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return plan.experiments(plan.load(path, changes), "plan")


@pytest.mark.parametrize("content", PLANS.values(), ids=PLANS)
def test_the_plans_of_the_repository_are_valid(content, tmp_path, monkeypatch):
    runs = len(content["seeds"]) * len(content["images_per_class"]) * len(content["runs"])
    assert len(wanted(content, tmp_path, monkeypatch)) == runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_class": {20: {"data.target_per_class": 9}}}, "data.target_per_class: was 9, expected 20"),
        ({"questions": [{"ask": "?", "first": "none", "second": OUTPUT}]}, "was 'none', expected one of"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, "none"]}]}, "choices: among: was 'none', expected one of"),
        ({"choices": [{"choose": OUTPUT, "among": [OUTPUT, LAST_TWO]}]}, "expected each once"),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(change, message, tmp_path, monkeypatch):
    with pytest.raises(UserError) as error:
        wanted(DIGITS | change, tmp_path, monkeypatch)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_given_with_the_command_override_the_plans(tmp_path, monkeypatch):
    changed = wanted(DIGITS, tmp_path, monkeypatch, "data.path=a b.npz", "finetune_fc.trainable=[fc1,output]")
    assert {tuple(settings["finetune_fc.trainable"]) for settings in changed.values()} == {("fc1", "output")}
    arguments = plan.overrides(changed["plan_random_20_s1"])  # as Hydra reads them
    assert {'data.path="a b.npz"', 'finetune_fc.trainable=["fc1", "output"]', "threads=null"} < set(arguments)
    for change, message in (("seed", "was 'seed', expected KEY=VALUE"), ("pretrain.epochs=2", "sets it in some")):
        with pytest.raises(UserError, match=message):
            wanted(DIGITS, tmp_path, monkeypatch, change)


def test_an_experiment_waits_for_the_first_with_a_training_that_it_has_too(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {"a": {}, "b": {"finetune_fc.epochs": 3}, "c": {"pretrain.epochs": 0}, "d": {"finetune_fc.epochs": 3}}
    sizes = {n: {"data.target_per_class": n} for n in (20, 30)}
    study = DIGITS | {"runs": runs | DIGITS["runs"], "images_per_class": sizes, "seeds": [1]}
    after, leads = runner.first_of_trainings(wanted(study, tmp_path, monkeypatch))
    assert after["plan_a_20_s1"] == after["plan_c_20_s1"] == set()
    assert after["plan_b_20_s1"] == {"plan_a_20_s1"}  # pretrain, finetune_output
    assert after["plan_d_20_s1"] == {"plan_a_20_s1", "plan_b_20_s1"}  # and finetune_fc
    assert after["plan_a_30_s1"] == {"plan_a_20_s1"}  # the same source images
    assert after["plan_c_30_s1"] == {"plan_c_20_s1"}
    assert leads == {"plan_a_20_s1", "plan_c_20_s1"}


def table_of(accuracies: dict[str, list[float]], **validation: list[float]) -> pd.DataFrame:
    """What `analysis.results` makes of runs with these test accuracies, and validation accuracies, by seed."""
    rows = [
        {"model": model, "images": 20, "seed": seed, "accuracy": value, "validation": np.nan}
        for model, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**validation)


@pytest.mark.parametrize("difference", [[1, 2, 3, -1], [1, 2, 3, 4, 5, 6], [0, 0, 0], [1, 0, -1, 1, 7, 5, 5, 5]])
def test_the_sign_flip_test_counts_every_flip_and_ties_as_ties(difference):
    signs = np.array(np.meshgrid(*[[1, -1]] * len(difference))).reshape(len(difference), -1).T
    expected = (np.abs(signs @ difference) >= abs(sum(difference))).mean()
    first = np.array([3001, 3107, 2903, 3019, 3251, 2899, 3011, 3007])[: len(difference)]
    assert analysis.sign_flip_p(first / 5000, (first + difference) / 5000) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seeds", "swapped", "verdict"),
    [(6, False, "**better**"), (6, True, "**worse**"), (5, False, "inconclusive"), (1, False, "inconclusive")],
)
def test_a_clear_difference_with_enough_seeds_and_with_too_few(seeds, swapped, verdict):
    names = ["b", "a"] if swapped else ["a", "b"]
    values = [0.5, 0.51, 0.52, 0.5, 0.49, 0.5], [0.7, 0.72, 0.71, 0.7, 0.7, 0.69, 0.1]  # a seed that one model lacks
    table = table_of(dict(zip(names, values, strict=True)))
    table = table[(table["seed"] < seeds) | (table["seed"] == 6)]
    (answer,) = analysis.compare_all(table, [Question(ask="?", first="a", second="b")])
    assert answer.loc[0, "n"] == seeds
    assert analysis.verdict(answer.loc[0]) == verdict
    assert "nan" not in page.answer(answer) + page.accuracies(analysis.summary(table[table["seed"] == 6]))
    if seeds == 6:
        half = 2.570582 * np.std([20, 21, 19, 20, 21, 19], ddof=1) / 100 / 6**0.5  # Student's
        mean = -0.2 if swapped else 0.2
        assert list(answer.loc[0, ["difference", "low", "high"]]) == pytest.approx([mean, mean - half, mean + half])


@pytest.mark.parametrize(("seeds", "models", "said"), [(8, 9, "at least 2 "), (6, 1, "at least 1 "), (5, 3, "too few")])
def test_many_comparisons_are_corrected_and_the_page_says_what_they_can_show(seeds, models, said):
    table = table_of({f"m{i}": [0.9 * (i == 1) + seed / 100 for seed in range(seeds)] for i in range(models + 1)})
    answers = analysis.compare_all(table, [Question(ask="?", first="m0", second=f"m{i + 1}") for i in range(models)])
    assert answers[0].loc[0, "adjusted"] == pytest.approx(models * 2 / 2**seeds)
    assert said in page.what_can_be_shown(answers)


def test_a_choice_on_test_images_says_so_and_one_on_validation_images_hides_the_others_test_accuracies(monkeypatch):
    table = table_of({OUTPUT: [0.1, 0.2, 0.9], LAST_TWO: [0.3, 0.4]})
    judged, held_out = analysis.choose(table, STUDY.choices[0], 20)
    assert (judged.index[0], set(judged["n"]), held_out) == (LAST_TWO, {2}, False)  # of the seeds that both have
    assert "This choice was made on the test images" in page.choices(STUDY, table)
    table = table_of({OUTPUT: [0.1, 0.2], LAST_TWO: [0.8, 0.9]}, validation=[0.7, 0.7, 0.6, 0.6])
    monkeypatch.setattr(Plan, "asked", {OUTPUT})  # the plan's question would have to show both
    text = page.choices(STUDY, table)
    assert f"Chosen on validation images alone: **{OUTPUT}**. Its test accuracy: 15.0%" in text
    assert "85.0" not in text
    assert set(analysis.shown(STUDY, table)["model"]) == {OUTPUT}


def test_a_question_about_a_choice_asks_about_what_was_chosen_at_each_number_of_images():
    random = STUDY.questions[0].first
    choice = {"choose": "tuned", "among": [OUTPUT, LAST_TWO]}
    question = {"ask": "?", "first": random, "second": "tuned"}
    sizes = {n: {"data.target_per_class": n} for n in (20, 30)}
    changes = {"choices": [choice], "questions": [question], "images_per_class": sizes, "seeds": [1, 2]}
    asking = Plan.model_validate(DIGITS | changes)

    def metrics(test: float, validation: float) -> dict[str, float]:
        return {"test_accuracy": test, "validation_accuracy": validation, "train_seconds": 1.0}

    rejected, best = metrics(0.9, 0.7), metrics(0.4, 0.8)  # on validation images alone
    of_runs = {
        ("pretrained", 20): {"finetune_output": rejected, "finetune_fc": best},
        ("pretrained", 30): {"finetune_output": best, "finetune_fc": rejected},
        ("random", 20): dict.fromkeys(("finetune_output", "finetune_fc"), metrics(0.1, 0.1)),
        ("random", 30): dict.fromkeys(("finetune_output", "finetune_fc"), metrics(0.1, 0.1)),
    }
    done = {
        plan.experiment_name("digits", run, images, seed): Experiment("0", {"pretrain": {"train_seconds": 2}} | trained)
        for (run, images), trained in of_runs.items()
        for seed in asking.seeds
    }
    table = analysis.results(asking, "digits", done)
    chosen = table[table["model"] == "tuned"]
    assert list(zip(chosen["images"], chosen["stage"], strict=True)) == [
        *[(20, "finetune_fc")] * 2,
        *[(30, "finetune_output")] * 2,
    ]
    (answer,) = analysis.compare_all(table, asking.questions)
    assert list(answer["difference"]) == pytest.approx([0.3, 0.3])
    shown = analysis.shown(asking, table)
    assert set(shown["model"]) == {random, "last two layers, random features", "tuned"}
    (ax,) = charts.accuracy_by_images(asking, analysis.summary(shown)).axes
    assert {line.get_label() for line in ax.containers} == set(shown["model"])
    assert "Its test accuracy: 40.0%" in page.choices(asking, table)
    assert "90.0" not in page.choices(asking, table)


def test_three_ways_of_fine_tuning_are_shown_by_layers():
    ways = dict.fromkeys(("output", "last two", "all"), STUDY.models["output layer"])
    layers = STUDY.model_copy(update={"models": ways})
    assert not charts.of_layers(STUDY)
    assert charts.of_layers(layers)
    table = table_of({f"{way}, {origin}": [0.1 * i, 0.2 * i] for i, way in enumerate(ways) for origin in ways[way]})
    (ax,) = charts.accuracy_by_layers(layers, analysis.summary(table)).axes
    for line in ax.containers:
        assert list(line.lines[0].get_ydata()) == pytest.approx([0, 0.15, 0.3])


@pytest.mark.parametrize("content", PLANS.values(), ids=PLANS)
def test_no_two_models_of_a_figure_look_alike(content):
    read = Plan.model_validate(content)
    stood_for = {name for choice in read.choices if choice.choose in read.asked for name in choice.among} - read.asked
    looks = [tuple(look.items()) for model, look in charts.style(read).items() if model not in stood_for]
    assert len(looks) == len(set(looks)) > 1


@pytest.mark.filterwarnings("error")
def test_figures_of_one_number_of_images_show_every_model():
    of_one = STUDY.model_copy(update={"images_per_class": {100: {}}})
    table = table_of({OUTPUT: [0.1, 0.2, 0.3], LAST_TWO: [0.1, 0.2, 0.3]}).assign(images=100, seconds=60.0)
    (ax,) = charts.accuracy_by_images(of_one, analysis.summary(table)).axes
    assert len({float(line.lines[0].get_xdata()[0]) for line in ax.containers}) == 2
    for figure in (ax.figure, charts.accuracy_by_time(of_one, table)):
        figure.canvas.draw()
        (ax,) = figure.axes
        for line in ax.lines:
            assert ax.bbox.contains(*ax.transData.transform(line.get_xydata()[0]))


def test_pairs_of_runs_from_different_machines_are_named():
    table = table_of({OUTPUT: [0.1, 0.2, 0.3], LAST_TWO: [0.3, 0.4, 0.5]})
    (line,) = page.mixed_set_ups(STUDY, table, pd.Series(["a", "b", "a", "a", "a", "a"]))
    assert f"in 1 of 3 pairs of the question “{STUDY.questions[2].ask}”" in line
    assert page.mixed_set_ups(STUDY, table, pd.Series(["a", "b", "a", "a", "b", "a"])) == []
