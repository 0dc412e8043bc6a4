"""Studies without their runs: plans, the experiments they ask for, and the conclusions of their pages."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from distributed import Client

from repository import ROOT
from stages.settings import Settings
from stages.shared.errors import UserError
from stages.shared.yaml_files import parse_yaml
from studies import __main__, analysis, charts, experiments, page, plan, repository, runner
from studies.cluster import FOLDER
from studies.plan import Plan, Question
from studies.repository import Experiment
from studies.worker import Base, Outcome

PLANS = {path.stem: parse_yaml(path.read_text()) for path in sorted(ROOT.glob("studies/*.yaml"))}
MNIST = PLANS["mnist"]
STUDY = Plan.model_validate(MNIST)
OUTPUT, LAST_TWO = STUDY.choices[0].among
RANDOM_OUTPUT = STUDY.questions[0].first
PHOTOS = Plan.model_validate(PLANS["photos"])
RUNS = {"count": 6, "commit": "a", "datasets": ["x.npz", ""], "test_images": [500], "splits": 1, "changed": {},
        "environments": {"cpu": 6}, "mixed_environments": [("?", 1, 3)]}  # fmt: skip


@pytest.fixture
def expand(tmp_path, monkeypatch):
    """Expand a plan into experiments, named plan_... without a hash, where the default settings are committed."""

    def expand(content: dict, *changes: str) -> dict:
        monkeypatch.setattr(experiments, "committed_settings", lambda: Settings().by_key())
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        expanded = experiments.expand(plan.load(path, changes), "plan")
        return {name.rpartition("_")[0]: settings for name, settings in expanded.items()}  # without hashes

    return expand


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


@pytest.mark.parametrize("content", PLANS.values(), ids=PLANS)
def test_the_plans_of_the_repository_are_valid_and_their_models_look_different(content, expand):
    assert len(expand(content)) == len(content["seeds"]) * len(content["images_per_class"]) * len(content["runs"])
    study = Plan.model_validate(content)
    replaced = {name for choice in study.choices if choice.choose in study.asked for name in choice.among} - study.asked
    looks = [tuple(look.items()) for model, look in charts.styles(study).items() if model not in replaced]
    assert len(looks) == len(set(looks)) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_class": {20: {"data.target_per_class": 9}}}, "data.target_per_class: was 9, expected 20"),
        ({"questions": [{"ask": "?", "first": "none", "second": OUTPUT}]}, "was 'none', expected one of"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, "none"]}]}, "choices: among: was 'none', expected one of"),
        ({"choices": [{"choose": OUTPUT, "among": [OUTPUT, LAST_TWO]}]}, "expected each once"),
        ({"settings": {"data.path": "${oc.env:TOKEN}.npz"}}, "was '${oc.env:TOKEN}.npz', expected plain values"),
        (
            {"runs": MNIST["runs"] | {"pretrained": {"data.path": "${oc.env:T}"}}},
            "${oc.env:T}'}, expected plain values",
        ),
        ({"page": "docs/page.md"}, "page: was an unknown key"),
        ({"images_per_class": {"some": {}}}, "images_per_class.some"),
        ({"with_backbone": {"none": {}}}, "with_backbone: was 'none', expected one of ['settings', 'pretrained', "),
        ({"choices": [MNIST["choices"][0] | {"against": "none"}]}, "choices: against: was 'none', expected one of"),
        (
            {"models": MNIST["models"] | {"a": {"b": {"run": "random", "stage": "finetune_fc", "control": True}}}},
            "models: a, b: control: was true, expected finetune_fc.control: true in its run",
        ),
    ],
)
def test_a_bad_plan_is_refused_in_one_line(change, message, expand):
    with pytest.raises(UserError) as error:
        expand(MNIST | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_given_with_the_command_override_the_plans(expand):
    changed = expand(MNIST, "data.path=a b.npz", "finetune_fc.trainable=[fc1,output]")
    assert {tuple(settings["finetune_fc.trainable"]) for settings in changed.values()} == {("fc1", "output")}
    arguments = experiments.overrides(changed["plan_random_20_s1"])  # as Hydra reads them
    assert {'data.path="a b.npz"', 'finetune_fc.trainable=["fc1", "output"]', "threads=null"} < set(arguments)
    for change, message in (
        ("seed", "was 'seed', expected KEY=VALUE"),
        ("pretrain.epochs=2", "sets it in some"),
        ("data.path=${oc.env:TOKEN}", "expected plain values"),
    ):
        with pytest.raises(UserError, match=message):
            expand(MNIST, change)
    with pytest.raises(UserError, match=r"--help.yaml: expected a file name"):
        plan.load(Path("--help.yaml"))


def test_all_ways_run_with_all_images_first_and_with_two_seeds_at_a_time(expand):
    names = list(expand(PLANS["photos"] | {"images_per_class": {"all": {}, 20: {}}, "seeds": [1, 2, 3]}))
    assert names[:4] == ["plan_probe_all_s1", "plan_layers_all_s1", "plan_everything_all_s1", "plan_probe_all_s2"]
    assert names[6] == "plan_probe_20_s1"
    assert names[12:16] == [*(name.replace("s1", "s3") for name in names[:3]), "plan_probe_20_s3"]
    assert list(PHOTOS.with_number(35, smallest=32).images_per_class) == [10, 25, 35]  # the mean of the classes
    assert list(PHOTOS.with_number(31, smallest=31).images_per_class) == [10, 31]


def test_a_backbone_on_the_command_line_changes_settings_and_runs(expand):
    backbone = expand(PLANS["photos"], "data.target_path=photos", "model.backbone=MobileNetV2", "data.image_size=128")
    settings = backbone["plan_layers_all_s1"]
    assert (settings["data.path"], settings["data.image_size"], settings["pretrain.epochs"]) == ("photos", 128, 0)
    assert settings["finetune_fc.trainable"] == ["last_block", "fc1", "output"]
    assert expand(PLANS["photos"])["plan_layers_all_s1"]["finetune_fc.trainable"] == ["conv2", "fc1", "fc2", "output"]


def test_an_experiment_waits_for_the_first_with_a_training_that_it_shares(expand, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = {"a": {}, "b": {"finetune_fc.epochs": 3}, "c": {"pretrain.epochs": 0}, "d": {"finetune_fc.epochs": 3}}
    sizes = {n: {"data.target_per_class": n} for n in (20, 30)}
    study = MNIST | {"runs": runs | MNIST["runs"], "images_per_class": sizes, "seeds": [1]}
    waits_for, first_pretrainings = experiments.find_dependencies(expand(study))
    assert waits_for["plan_a_20_s1"] == waits_for["plan_c_20_s1"] == set()
    assert waits_for["plan_b_20_s1"] == {"plan_a_20_s1"}  # pretrain, finetune_output
    assert waits_for["plan_d_20_s1"] == {"plan_a_20_s1", "plan_b_20_s1"}  # and finetune_fc
    assert waits_for["plan_a_30_s1"] == {"plan_a_20_s1"}  # the same source images
    assert waits_for["plan_c_30_s1"] == {"plan_c_20_s1"}
    assert first_pretrainings == {"plan_a_20_s1", "plan_c_20_s1"}


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
    rejected, best, random = (
        {"test_accuracy": test, "validation_accuracy": validation, "train_seconds": 1.0}
        for test, validation in ((0.9, 0.7), (0.4, 0.8), (0.1, 0.1))
    )
    trained = {
        ("pretrained", 20): {"finetune_output": rejected, "finetune_fc": best},
        ("pretrained", 30): {"finetune_output": best, "finetune_fc": rejected},
        ("random", 20): {"finetune_output": random, "finetune_fc": random},
        ("random", 30): {"finetune_output": random, "finetune_fc": random},
    }
    done = {
        f"{experiments.experiment_name('x', *run, seed)}_a1b2c3": Experiment(
            "0", {"pretrain": {"train_seconds": 2}} | metrics
        )
        for run, metrics in trained.items()
        for seed in study.seeds
    }
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


def test_a_page_begins_with_the_way_to_take_its_accuracy_and_the_worth_of_more_images(monkeypatch):
    monkeypatch.setattr(page, "committed_settings", dict)
    monkeypatch.setattr(experiments, "committed_settings", lambda: PHOTOS.settings | {"data.test_fraction": 0.2})
    monkeypatch.setattr(analysis, "predictions", lambda row: range(100))
    ways, scratch = PHOTOS.choices[0].among, str(PHOTOS.choices[0].against)
    study = PHOTOS.with_number(40, smallest=40)
    few = table_of({ways[2]: [0.5, 0.4, 0.6]}, images=10, validation=0.1)
    tests = {ways[0]: [0.7, 0.9, 0.5], ways[2]: [0.8, 0.7, 0.9], scratch: [0.6, 0.4, 0.8]}
    validation = [0.6, 0.9, 0.5, 0.8, 0.7, 0.9, *[np.nan] * 3]  # the second seed would choose another way
    text = render(study, pd.concat([table_of(tests, images=40).assign(validation=validation), few]))
    answer, _, rest = text.partition("\n- ")
    assert f"Take **{ways[2]}**: on validation images it is the best of 2 ways (3 more have not run yet)" in answer
    assert "its expected accuracy on new pictures is 86.7% (95% interval 72.3 to 100.0)" in answer  # 80, 90, 90
    assert f"Compared with **{scratch}**, it gains +20.0 points (95% interval -4.8 to +44.8)" in answer
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
    text = render(STUDY.model_copy(update={"title": "![a](b)"}), table_of({OUTPUT: [0.1, 0.2, 0.9]}))
    assert text.startswith("# \\!\\[a\\](b)\n")
    assert page.code("`x``") == "``` `x`` ```"
    assert text.count("no runs.") == 3
    assert f"No runs: {LAST_TWO}." in text
    assert "nan" not in text + render(STUDY, table_of({name: [0.1] for name in STUDY.named_models}))


METRICS = json.dumps({stage: {"test_accuracy": 0.5} for stage in ("pretrain", "finetune_output", "finetune_fc")})
DETAILS = METRICS.replace('"test_accuracy": 0.5', '"validation_accuracy": null, "train_seconds": 1.0')
BASE, WANTED = Base(".", "", "0" * 40, "a", "a@example.org", cache="cache"), {"a_run": Settings().by_key()}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("reports/metrics.json", "{x", "reports/metrics.json: Invalid JSON"),
        ("reports/metrics.json", METRICS.replace("0.5", "99", 1), "pretrain.test_accuracy: was 99, expected"),
        ("reports/details.json", DETAILS.replace("finetune_fc", "other"), "finetune_fc: was missing"),
        ("params.yaml", "a: &x 1\nb: *x", "params.yaml: no valid YAML in commit 123: line 2: an alias"),
        ("params.yaml", "text", "params.yaml: no valid YAML"),
        ("params.yaml", "seed: 2", "params.yaml has other settings"),
    ],
)
def test_a_damaged_experiment_is_refused_by_its_name(file, content, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = {"params.yaml": yaml.safe_dump(Settings().model_dump())}
    files |= {"reports/metrics.json": METRICS, "reports/details.json": DETAILS}
    git = {f"123:./{name}": name for name in files}  # all other commands list the experiments
    monkeypatch.setattr(repository, "_git", lambda *words, hint="": files.get(git.get(words[-1]), "a_run 123"))
    assert repository.completed_experiments(BASE, WANTED)["a_run"].metrics["pretrain"]["test_accuracy"] == 0.5
    files[file] = content
    with pytest.raises(UserError, match=f"a_run: .*{message}.*dvc exp remove a_run"):
        repository.completed_experiments(BASE, WANTED)


@pytest.mark.parametrize("status", ["done", "of another version"])
def test_a_run_without_an_experiment_is_named_as_failed(status, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    FOLDER.mkdir(parents=True)
    monkeypatch.setattr(runner, "completed_experiments", lambda base, wanted: {})
    monkeypatch.setattr(runner.worker, "run_experiment", lambda *arguments: Outcome(status, "why"))
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        for deadline, reason in ((0, "none was started"), (float("inf"), "a_run: ")):
            with pytest.raises(UserError, match=f"no experiment succeeded: {reason}"):
                runner.Study(client, BASE, WANTED, False, deadline).run()


def test_fewer_workers_than_one_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["studies", "studies/mnist.yaml", "--workers", "-3"])
    with pytest.raises(SystemExit, match="error: --workers: was -3, expected 1 or more"):
        __main__.main()
