"""Studies: the plan, what the runs are said to show, and the way from a plan to a page through DVC's queue."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from repository import ROOT, Repository, tiny_params
from stages.settings import UserError
from studies import analysis, page, plan, queue, workspace
from studies.plan import Choice, Plan, Question

PLANS = sorted((ROOT / "studies").glob("*.yaml"))
TWO_MODELS = {"questions": [{"ask": "?", "first": "a, b", "second": "a, c"}], "choices": []}
MODEL = {"run": "pretrained", "stage": "finetune_fc"}
OUTPUT, LAST_TWO = "output layer, pretrained", "last two layers, pretrained"


def tiny_plan() -> dict:
    """A plan of one experiment for the repository of tests/repository.py."""
    return {
        "title": "Which layers?",
        "notes": "Tiny images.",
        "page": "reports/study.md",
        "seeds": [1],
        "settings": {"data.validation_fraction": 0.25},
        "images_per_class": {10: {"data.target_per_class": 10}},
        "runs": {"pretrained": {"pretrain.epochs": 1}},
        "models": {
            "output layer": {"pretrained": {"run": "pretrained", "stage": "finetune_output"}},
            "last two layers": {"pretrained": {"run": "pretrained", "stage": "finetune_fc"}},
        },
        "questions": [{"ask": "Are two layers better?", "first": OUTPUT, "second": LAST_TWO}],
        "choices": [{"choose": "Which layers", "among": [OUTPUT, LAST_TWO], "images_per_class": 10}],
    }


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_plans_of_the_repository_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        plan, "committed_settings", lambda: dict(plan.leaves(yaml.safe_load(Path("params.yaml").read_text())))
    )
    study = plan.load(path)
    wanted = plan.experiments(study, path.stem)
    assert len(wanted) == len(study.seeds) * len(study.images_per_class) * len(study.runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, "seeds: was [1, 1], expected each once"),
        ({"seeds": ["one"]}, "seeds.0: was 'one'"),
        ({"runs": {"a b": {}}}, "runs"),
        ({"titel": "x"}, "titel"),
        ({"questions": [{"ask": "?", "first": "none", "second": OUTPUT}]}, "was 'none', expected one of"),
        ({"images_per_class": {}}, "images_per_class"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, LAST_TWO], "images_per_class": 9}]}, "was 9, expected one of"),
        ({"settings": {"pretrain.epochs": -1}, "runs": {"pretrained": {}}}, "pretrain.epochs: was -1"),
        ({"settings": {"pretrain.epoch": 1}}, "pretrain.epoch"),
        ({"settings": {"nothing": 1}}, "nothing"),
        ({"questions": []}, "questions"),
        ({"settings": {"seed.x": 1}}, "seed.x: unknown key"),
        (TWO_MODELS | {"models": {"a": {"b": MODEL, "c": MODEL | {"run": "c"}}}}, "was 'c'"),
        (TWO_MODELS | {"models": {"a": {"b": MODEL, "c": MODEL | {"stage": "prepare"}}}}, "was 'prepare'"),
        (TWO_MODELS | {"models": {"a": {"b": MODEL, "c": MODEL | {"stage": "pretrain"}}}}, "expected the same classes"),
        ({"questions": [{"ask": "?", "first": OUTPUT, "second": OUTPUT}]}, "expected another model"),
        ({"choices": [{"choose": "x", "among": [OUTPUT, OUTPUT], "images_per_class": 10}]}, "expected each once"),
        ({"images_per_class": {10: {"data.target_per_class": 20}}}, "data.target_per_class: was 20, expected 10"),
    ],
)  # fmt: skip
def test_a_bad_plan_is_refused_in_one_line(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "committed_settings", lambda: dict(plan.leaves(tiny_params())))
    path = write(tmp_path / "bad.yaml", tiny_plan() | change)
    with pytest.raises(UserError) as error:
        plan.experiments(plan.load(path), "bad")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def table_of(accuracies: dict[str, list[float]], images: int = 10, validation: dict | None = None) -> pd.DataFrame:
    """What `analysis.results` makes of runs with these test accuracies by seed."""
    return pd.DataFrame(
        {"model": model, "images": images, "seed": seed, "accuracy": value, "seconds": 1.0,
         "validation": (validation or {}).get(model, [np.nan] * len(values))[seed]}
        for model, values in accuracies.items()
        for seed, value in enumerate(values)
    )  # fmt: skip


def test_interval_of_a_mean_is_students():
    low, high = analysis.mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert np.isnan(analysis.mean_interval(np.array([1.0]))).all()


def test_settings_given_with_the_command_go_before_the_plans(tmp_path):
    path = write(tmp_path / "tiny.yaml", tiny_plan())
    study = plan.load(path, ["data.validation_fraction=0.5", "finetune_fc.trainable=[fc1,output]"])
    assert study.settings == {"data.validation_fraction": 0.5, "finetune_fc.trainable": ["fc1", "output"]}
    with pytest.raises(UserError, match="-S: was 'seed', expected KEY=VALUE"):
        plan.load(path, ["seed"])
    with pytest.raises(UserError, match=r"pretrain\.epochs: set by"):
        plan.load(path, ["pretrain.epochs=2"])


@pytest.mark.parametrize("n", [2, 4, 6])
def test_the_sign_flip_test_cannot_be_below_its_smallest_p(n):
    first = np.linspace(0.5, 0.6, n)
    assert analysis.sign_flip_p(first, first + np.linspace(0.1, 0.2, n)) == pytest.approx(2 / 2**n)
    assert analysis.sign_flip_p(first, first) == 1


def test_the_sign_flip_test_counts_ties_as_ties():
    first, difference = np.array([3001, 3107, 2903, 3019, 3251, 2899, 3011, 3007]), np.array([1, 0, -1, 1, 7, 5, 5, 5])
    assert analysis.sign_flip_p(first / 5000, (first + difference) / 5000) == pytest.approx(16 / 2**8)


def test_the_sign_flip_test_counts_every_flip():
    difference = np.array([1.0, 2.0, 3.0, -1.0])
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1).T
    expected = (np.abs(signs @ difference) >= difference.sum()).mean()
    assert analysis.sign_flip_p(np.zeros(4), difference) == pytest.approx(expected)


def test_a_clear_difference_with_enough_seeds_and_with_too_few():
    question = Question(ask="?", first="a", second="b")
    six = table_of({"a": [0.5, 0.51, 0.52, 0.5, 0.49, 0.5], "b": [0.7, 0.72, 0.71, 0.7, 0.7, 0.69]})
    (answer,) = analysis.compare_all(six, [question])
    assert answer.loc[0, "difference"] == pytest.approx(0.2)
    assert answer.loc[0, "n"] == 6
    assert analysis.verdict(answer.loc[0]) == "**better**"
    (swapped,) = analysis.compare_all(six, [Question(ask="?", first="b", second="a")])
    assert analysis.verdict(swapped.loc[0]) == "**worse**"
    (few,) = analysis.compare_all(six[six["seed"] < 5], [question])
    assert analysis.verdict(few.loc[0]) == "inconclusive"
    (one,) = analysis.compare_all(six[six["seed"] < 1], [question])
    assert analysis.verdict(one.loc[0]) == "inconclusive"


def test_many_comparisons_are_corrected():
    models = {f"m{i}": [0.5 + 0.01 * (-1) ** (i + seed) for seed in range(8)] for i in range(9)}
    models["b"] = [0.9 + seed / 100 for seed in range(8)]
    questions = [Question(ask="?", first="m0", second=name) for name in ("b", *[f"m{i}" for i in range(1, 9)])]
    answers = pd.concat(analysis.compare_all(table_of(models), questions))
    assert (answers["adjusted"] >= answers["p"]).all()
    assert answers["adjusted"].iloc[0] == pytest.approx(9 * 2 / 2**8)


def test_only_seeds_that_both_models_have_are_compared():
    table = table_of({"a": [0.1, 0.2, 0.3], "b": [0.3, 0.4, 0.9]})
    answer = analysis.compare(
        table[~((table["model"] == "b") & (table["seed"] == 2))], Question(ask="?", first="a", second="b")
    )
    assert answer.loc[0, "n"] == 2
    assert answer.loc[0, "difference"] == pytest.approx(0.2)


def test_what_has_no_runs_is_left_out():
    study = Plan.model_validate(tiny_plan())
    table = table_of({OUTPUT: [0.1, 0.2]})
    (answer,) = answers = analysis.compare_all(table, study.questions)
    assert answer.empty
    assert "no runs" in page.in_short(study, answers)
    assert analysis.class_gains(table, study.questions[0], 10).empty
    assert "No seed has all" in page.choices(study, table)
    assert "none could be tested" in page.what_can_be_shown(answers)


@pytest.mark.parametrize(("seeds", "models", "said"), [(8, 9, "at least 2"), (6, 1, "at least 1"), (5, 3, "too few")])
def test_what_so_many_seeds_can_show(seeds, models, said):
    table = table_of({f"m{i}": [0.5 + 0.01 * seed for seed in range(seeds)] for i in range(models + 1)})
    questions = [Question(ask="?", first="m0", second=f"m{i}") for i in range(1, models + 1)]
    assert said in page.what_can_be_shown(analysis.compare_all(table, questions))


def test_a_choice_compares_the_seeds_that_all_candidates_have():
    table = table_of({OUTPUT: [0.1, 0.2, 0.9], LAST_TWO: [0.3, 0.4]})
    judged, _ = analysis.choose(table, Choice(**tiny_plan()["choices"][0]))
    assert judged.index[0] == LAST_TWO
    assert set(judged["n"]) == {2}


def test_one_seed_has_no_interval_and_no_test():
    table = table_of({OUTPUT: [0.1], LAST_TWO: [0.8]})
    (answer,) = analysis.compare_all(table, [Question(ask="?", first=OUTPUT, second=LAST_TWO)])
    assert "nan" not in page.answer(answer) + page.accuracies(analysis.summary(table))


def test_a_run_queued_again_counts_though_an_older_commits_has_ended(monkeypatch):
    shown = """Task     Name     Created    Status
1111111  a_b_1_s1  02:51 AM   Running
2222222  a_b_1_s2  02:51 AM   Queued
3333333  a_b_1_s2  01:51 AM   Success

Worker status: 1 active, 0 idle"""
    monkeypatch.setattr(queue, "dvc", lambda *_: shown)
    assert queue.states() == {"a_b_1_s1": "Running", "a_b_1_s2": "Queued"}
    names = [(task.rev, task.name, task.state) for task in queue.tasks()]
    assert names[:2] == [("1111111", "a_b_1_s1", "Running"), ("2222222", "a_b_1_s2", "Queued")]
    assert [task.state for task in queue.tasks()] == ["Running", "Queued", "Success"]
    monkeypatch.setattr(queue, "dvc", lambda *_: "No experiment tasks in the queue.\n\nWorker status: 0 active, 0 idle")
    assert queue.tasks() == []


def experiment(name: str, state: str, **changes) -> queue.Experiment:
    known = {"rev": f"rev of {name}", "settings": {"seed": 1}, "metrics": {}, "log": None, "killed": False}
    return queue.Experiment(name=name, state=state, **known | changes)


def test_what_is_queued_again(monkeypatch):
    wanted = {name: {"seed": 1} for name in ("new", "done", "changed", "failed", "killed", "queued")}
    known = [
        experiment("done", "success", metrics={"pretrain": {}}),
        experiment("changed", "success", settings={"seed": 2}),
        experiment("failed", "failed"),
        experiment("killed", "failed", killed=True),
        experiment("queued", "queued"),
    ]
    commands = []
    monkeypatch.setattr(queue, "worker_runs", lambda: False)
    monkeypatch.setattr(queue, "experiments", lambda: {found.name: found for found in known})
    monkeypatch.setattr(queue, "dvc", lambda *arguments, **_: commands.append(arguments))
    failed, in_queue = queue.queue_missing(wanted, False, requeued := Counter())
    assert failed == {"failed": "see `dvc queue logs failed`"}
    assert in_queue == ["queued", "new", "changed", "killed"]
    assert requeued == {"changed": 1, "killed": 1}
    assert ("exp", "remove", "changed") in commands
    assert ("queue", "remove", "rev of killed") in commands
    assert [command[4] for command in commands if command[1] == "run"] == ["new", "changed", "killed"]
    assert queue.queue_missing(wanted, True, Counter())[1] == ["queued", "new", "changed", "failed", "killed"]
    assert set(queue.queue_missing({"killed": {"seed": 1}}, False, Counter(killed=queue.REQUEUED))[0]) == {"killed"}


def test_a_choice_is_made_on_validation_images_and_hides_the_others_test_accuracies(monkeypatch):
    study = Plan.model_validate(tiny_plan())
    table = table_of({OUTPUT: [0.1, 0.2], LAST_TWO: [0.8, 0.9]}, validation={OUTPUT: [0.7, 0.7], LAST_TWO: [0.6, 0.6]})
    monkeypatch.setattr(type(study), "asked", {OUTPUT})  # the plan's question would have to show both
    text = page.choices(study, table)
    assert f"Chosen: **{OUTPUT}**, on validation images" in text
    assert "15.0 %" in text
    assert "85.0" not in text
    assert set(analysis.shown(study, table)["model"]) == {OUTPUT}


def test_a_choice_on_test_images_is_said_to_be_one():
    study = Plan.model_validate(tiny_plan())
    text = page.choices(study, table_of({OUTPUT: [0.1, 0.2], LAST_TWO: [0.8, 0.9]}))
    assert "This choice was made on the test images" in text
    judged, held_out = analysis.choose(table_of({OUTPUT: [0.1], LAST_TWO: [0.8]}), Choice(**tiny_plan()["choices"][0]))
    assert not held_out
    assert judged.index[0] == LAST_TWO


def test_settings_become_arguments_that_hydra_reads():
    given = {"threads": None, "model.rescale": True, "finetune_fc.trainable": ["fc2", "output"], "data.path": "a b.npz"}
    assert queue.overrides(given)[1::2] == [
        "threads=null",
        "model.rescale=true",
        'finetune_fc.trainable=["fc2", "output"]',
        'data.path="a b.npz"',
    ]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with a tiny plan, nothing run."""
    repo = Repository(tmp_path_factory.mktemp("study of two"))
    write(repo.path / "studies/tiny.yaml", tiny_plan())
    repo.commit("A plan")
    return repo


def study(repo: Repository, *arguments: str, check: bool = True) -> str:
    return repo.run(sys.executable, "-m", "studies", "studies/tiny.yaml", *arguments, check=check).stdout


def processes_in(folder: Path) -> list[int]:
    """Whatever runs in a folder: DVC's worker, its experiment, a stage."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = (process / "cwd").readlink()
        except OSError:
            continue
        if here.is_relative_to(folder):
            found.append(int(process.name))
    return found


def test_a_study_refuses_code_that_is_not_committed(repo):
    file = repo.path / "stages/report.py"
    before = file.read_text()
    file.write_text(before + "# changed\n")
    output = study(repo, check=False)
    file.write_text(before)
    assert "stages/report.py: changed since the last commit" in output


def killed_at(repo: Repository, text: str, seconds: float = 0) -> None:
    """Start the study, and kill it and all that it started so many seconds after it has printed a text."""
    log = repo.path.with_name("study.log")
    with log.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", "studies", "studies/tiny.yaml"], cwd=repo.path, env=repo.environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    while text not in log.read_text():
        assert started.poll() is None, log.read_text()
        time.sleep(0.02)
    time.sleep(seconds)
    while running := processes_in(repo.path):
        for process in running:
            os.kill(process, signal.SIGKILL)
        started.poll()
        time.sleep(0.1)


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize("left_in_stash", [True, False])
def test_what_a_kill_while_queueing_leaves_is_undone(repo, monkeypatch, changed, left_in_stash):
    """As DVC's steps come: the user's changes into the stash, HEAD detached, params.yaml of a run, its own stash."""
    monkeypatch.chdir(repo.path)
    readme, params = repo.path / "README.md", repo.path / "params.yaml"
    before = params.read_text()
    text = readme.read_text() + "changed\n" if changed else readme.read_text()
    readme.write_text(text)
    killed = "import os; from studies import workspace\nwith workspace.noted(): os.kill(os.getpid(), 9)"
    repo.run(sys.executable, "-c", killed, check=False)
    if changed:
        repo.run("git", "stash", "push", "-q")
    repo.run("git", "checkout", "-q", "--detach")
    params.write_text("seed: 7\n")
    repo.run("git", "add", "params.yaml")
    if left_in_stash:
        repo.run("git", "stash", "push", "-q", "-m", "dvc-exp:1:1:tiny")
    (repo.path / ".git/index.lock").touch()
    workspace.mend()
    assert repo.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert (readme.read_text(), params.read_text()) == (text, before)
    assert repo.run("git", "stash", "list").stdout == ""
    assert not workspace.NOTE.exists()
    repo.run("git", "checkout", "-q", "README.md")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_with_all_its_processes_it_goes_on_and_writes_the_same_page(repo):
    killed_at(repo, "queueing 1 of 1", 0.6)
    killed_at(repo, "running: tiny_")
    output = study(repo)
    assert "queueing 1 of 1" in output
    disturbed = (repo.path / "reports/study.md").read_text()
    assert "queueing" not in study(repo)
    name = "tiny_pretrained_10_s1"
    assert name in repo.dvc("exp", "show", "--csv")
    assert repo.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert repo.run("git", "status", "--short", "--untracked-files=no").stdout == ""

    repo.dvc("exp", "remove", name)
    repo.run("rm", "-rf", ".dvc/cache", "reports/study.md")
    assert "queueing 1 of 1" in study(repo)
    assert (repo.path / "reports/study.md").read_text() == disturbed


def test_a_failed_run_is_named_and_not_run_again_by_itself(repo):
    data = repo.path / "data/raw/other.npz"
    broken = tiny_plan() | {"seeds": [1], "settings": {"data.path": "data/raw/other.npz"}}
    write(repo.path / "studies/broken.yaml", broken)
    data.write_bytes(b"no dataset")
    repo.run("git", "add", "-f", "data/raw/other.npz")
    repo.commit("A broken dataset")
    command = (sys.executable, "-m", "studies", "studies/broken.yaml")
    result = repo.run(*command, check=False)
    assert result.returncode == 1
    assert "broken_pretrained_10_s1: error: data/raw/other.npz" in result.stdout
    assert "queueing" not in repo.run(*command, check=False).stdout
