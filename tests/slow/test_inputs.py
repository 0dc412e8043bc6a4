"""Changes of inputs and `dvc plots show` while a stage runs, with real `dvc`."""

import json

import pytest

from repository import REPRO, Repository, wait_for

# In this repository, a stage waits after it has written the file that the environment names.
WAIT = """
import os, pathlib, time
replace = pathlib.Path.replace
def replace_and_wait(path, target):
    replaced = replace(path, target)
    if target.name == os.environ.get("WAIT_AT"):
        print(f"{target.name} written", flush=True)
        while not pathlib.Path("go on").exists():
            time.sleep(0.01)
    return replaced
pathlib.Path.replace = replace_and_wait
"""
MNIST = "data/raw/mnist.npz"
SPLIT = "stages/images/split.py"
DROPOUT = ("params.yaml", "dropout: 0.2", "dropout: 0.3")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository in which `prepare` has run."""
    repo = Repository(tmp_path_factory.mktemp("inputs"))
    (repo.path / "wait.py").write_text(WAIT)
    with (repo.path / "stages/__init__.py").open("a") as file:
        file.write("import wait\n")
    (repo.path / ".git/info/exclude").write_text("go on\n/dvc_plots\n")
    repo.dvc("repro", "prepare")
    repo.commit("Stages wait")
    return repo


def during(repo, stage: str, file: str, action) -> tuple[str, bool]:
    """Run a stage, act once it has written a file, undo that; return the output, and whether DVC recorded the stage."""
    go_on = repo.path / "go on"
    go_on.unlink(missing_ok=True)
    process, log = repo.start(*REPRO, "--single-item", "--force", stage, WAIT_AT=file)
    wait_for(f"{file} written", process, log)
    action(repo)
    assert process.poll() is None
    go_on.touch()
    process.wait()
    lock = (repo.path / "dvc.lock").read_bytes()
    repo.run("git", "checkout", "-q", ".")
    assert "Traceback" not in log.read_text()
    return log.read_text(), lock != (repo.path / "dvc.lock").read_bytes()


def test_plots_show_the_epochs_so_far_while_a_stage_trains(repo):
    shown = []
    during(repo, "pretrain", "history.csv", lambda repo: shown.append(repo.dvc("plots", "show", "--json")))
    plots = json.loads(shown[0].splitlines()[-1])["data"]
    for title in ("Training accuracy", "Validation (or test) accuracy", "Validation (or test) loss"):
        assert [row["epoch"] for row in plots[title][0]["content"]["data"]["values"]] == ["1"]


@pytest.mark.parametrize(
    ("stage", "file", "named", "change"),
    [
        ("prepare", "source.npz", "data/raw/tiny.npz", lambda repo: repo.run("cp", MNIST, "data/raw/tiny.npz")),
        ("prepare", "target.npz", SPLIT, lambda repo: repo.edit(SPLIT, "import numpy", "import  numpy")),
        ("pretrain", "history.csv", "model.dropout in params.yaml", lambda repo: repo.edit(*DROPOUT)),
    ],
    ids=["data", "code", "setting"],
)
def test_an_input_that_changes_while_a_stage_runs_is_named_and_nothing_is_recorded(repo, stage, file, named, change):
    output, recorded = during(repo, stage, file, change)
    assert f"error: {named}: changed while the stage ran, so nothing is recorded; type `dvc repro`" in output
    assert not recorded


def test_inputs_of_other_stages_may_change(repo):
    def change(repo):
        repo.edit(*DROPOUT)
        repo.edit("stages/training/fit.py", "import keras", "import  keras")

    output, _ = during(repo, "prepare", "source.npz", change)
    assert "error" not in output
    assert "Updating lock file" in output or "Use `dvc push`" in output
