"""Studies without their runs: the plan, and what the runs are said to show."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from repository import ROOT
from stages.settings import Settings
from stages.shared.errors import UserError
from studies import analysis, page, plan, queue
from studies.plan import Plan, Question

PLANS = {name: yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text()) for name in ("digits", "cifar10")}
DIGITS = PLANS["digits"]
STUDY = Plan.model_validate(DIGITS)
OUTPUT, LAST_TWO = STUDY.choices[0].among


def test_a_python_without_packages_ends_in_one_line():
    command = [sys.executable, "-ES", "-m", "studies", "studies/digits.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "run `make setup` once" in result.stderr
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


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


def model(run: str, stage: str) -> dict:
    """One more model in a plan, and a question about it."""
    question = {"ask": "?", "first": OUTPUT, "second": "a, b"}
    return {"models": DIGITS["models"] | {"a": {"b": {"run": run, "stage": stage}}}, "questions": [question]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "titel: unknown key"),
        ({"seeds": [1, 1]}, "seeds: was [1, 1], expected each once"),
        ({"settings": {"pretrain.batch_size": -1}}, "pretrain.batch_size: was -1"),
        ({"settings": {"seed.x": 1}}, "seed.x: unknown key"),
        ({"images_per_class": {20: {"data.target_per_class": 9}}}, "data.target_per_class: was 9, expected 20"),
        ({"questions": [{"ask": "?", "first": "none", "second": OUTPUT}]}, "was 'none', expected one of"),
        ({"questions": [{"ask": "?", "first": OUTPUT, "second": OUTPUT}]}, "expected another model"),
        (model("c", "pretrain"), "run: was 'c'"),
        (model("random", "prepare"), "stage: was 'prepare'"),
        (model("random", "pretrain"), "expected the same classes"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, OUTPUT], "images_per_class": 20}]}, "expected each once"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, LAST_TWO], "images_per_class": 9}]}, "was 9, expected one of"),
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


def test_a_setting_missing_in_the_last_commit_is_named(monkeypatch):
    shown = subprocess.CompletedProcess([], 0, stdout="seed: 1\n")
    monkeypatch.setattr(plan.subprocess, "run", lambda *_, **__: shown)
    with pytest.raises(UserError, match=r"params\.yaml: threads, .*: missing"):
        plan.committed_settings()


def test_the_state_of_a_run_is_not_that_of_an_older_one(monkeypatch):
    rows = "Task Name Created Status\n11 a_s1 02:51 AM Running\n22 a_s2 02:51 AM Queued\n33 a_s2 01:51 AM Success"
    monkeypatch.setattr(queue, "dvc", lambda *_: rows + "\n\nWorker status: 1 active, 0 idle")
    assert queue.states() == {"a_s1": "Running", "a_s2": "Queued"}


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


def test_what_has_no_runs_is_left_out():
    table = table_of({OUTPUT: [0.1, 0.2]})
    answers = analysis.compare_all(table, STUDY.questions)
    assert page.in_short(STUDY, answers).count("no runs") == len(STUDY.questions)
    assert analysis.class_gains(table, STUDY.questions[-1], 20).empty
    assert "No seed has runs of all" in page.choices(STUDY, table)
    assert "none could be tested" in page.what_can_be_shown(answers)


def test_a_choice_on_test_images_says_so_and_compares_the_seeds_that_all_candidates_have():
    table = table_of({OUTPUT: [0.1, 0.2, 0.9], LAST_TWO: [0.3, 0.4]})
    judged, held_out = analysis.choose(table, STUDY.choices[0])
    assert (judged.index[0], set(judged["n"]), held_out) == (LAST_TWO, {2}, False)
    assert "This choice was made on the test images" in page.choices(STUDY, table)


def test_a_choice_is_made_on_validation_images_and_hides_the_others_test_accuracies(monkeypatch):
    table = table_of({OUTPUT: [0.1, 0.2], LAST_TWO: [0.8, 0.9]}, validation=[0.7, 0.7, 0.6, 0.6])
    monkeypatch.setattr(Plan, "asked", {OUTPUT})  # the plan's question would have to show both
    text = page.choices(STUDY, table)
    assert f"Chosen on validation images alone: **{OUTPUT}**. Its test accuracy: 15.0%" in text
    assert "85.0" not in text
    assert set(analysis.shown(STUDY, table)["model"]) == {OUTPUT}
