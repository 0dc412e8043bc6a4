"""Nothing is recorded that was not run: an input that changes while a stage runs ends it, with real `dvc`."""

import io

import numpy as np
import pytest

from repository import REPRO, Repository, tiny_params, wait_for
from tiny import tiny_arrays

# `prepare` is too short to be met: in this repository it waits at the moment that the environment names.
MOMENTS = {
    "settings read": "    params = settings.load()\n",
    "data read": "    datasets = source.load_both(params.data, params.seed)\n",
    "all written": "print(class_counts(half).to_string(max_rows=MOST_ROWS))\n",
}
WAIT = """
import os, pathlib, time
def at(moment):
    if os.environ.get("WAIT_AT") == moment:
        print(moment, flush=True)
        while not pathlib.Path("go on").exists():
            time.sleep(0.01)
"""


def edit(repo, path: str, before: str, after: str) -> None:
    content = (repo.path / path).read_text()
    assert content.count(before) == 1
    (repo.path / path).write_text(content.replace(before, after))


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository in which `prepare` has run; its other branch has another seed."""
    params = tiny_params()
    params["pretrain"] |= {"epochs": 60, "batch_size": 8}
    repo = Repository(tmp_path_factory.mktemp("inputs"), params)
    (repo.path / "wait.py").write_text(WAIT)
    for moment, after in MOMENTS.items():
        edit(repo, "stages/prepare.py", after, f"{after}    __import__('wait').at({moment!r})\n")
    (repo.path / ".git/info/exclude").write_text("go on\n")
    repo.dvc("repro", "prepare")
    repo.commit("prepare waits")
    repo.run("git", "checkout", "-qb", "other")
    edit(repo, "params.yaml", "seed: 1", "seed: 2")
    repo.commit("Another seed")
    repo.run("git", "checkout", "-q", "main")
    return repo


def during(repo, stage: str, moment: str, accident) -> str:
    """Run a stage, have an accident when it has printed `moment`, put all back, and return what was printed."""
    go_on = repo.path / "go on"
    go_on.unlink(missing_ok=True)
    process, log = repo.start(*REPRO, "--single-item", "--force", stage, WAIT_AT=moment)
    wait_for(moment, process, log)
    accident(repo)
    go_on.touch()
    process.wait()
    lock = (repo.path / "dvc.lock").read_bytes()
    repo.run("git", "checkout", "-qf", "main")
    repo.run("git", "checkout", "-q", ".")
    assert "Traceback" not in log.read_text()
    return log.read_text() + ("recorded" if lock != (repo.path / "dvc.lock").read_bytes() else "")


def replace_data(repo) -> None:
    other = io.BytesIO()
    np.savez(other, **tiny_arrays(seed=1))
    (repo.path / "data/raw/tiny.npz").write_bytes(other.getvalue())


SPLIT = "stages/images/split.py"
ACCIDENTS = {
    "setting edited": ("seed in params.yaml", lambda repo: edit(repo, "params.yaml", "seed: 1", "seed: 3")),
    "branch checked out": ("seed in params.yaml", lambda repo: repo.run("git", "checkout", "-q", "other")),
    "data replaced": ("data/raw/tiny.npz", replace_data),
    "code edited": (SPLIT, lambda repo: edit(repo, SPLIT, "import numpy", "import  numpy")),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("named", "accident"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_input_that_changes_while_a_stage_runs_is_named_and_nothing_recorded(repo, named, accident, moment):
    output = during(repo, "prepare", moment, accident)
    assert f"error: {named}: changed while the stage ran, so nothing is recorded; type `dvc repro`" in output
    assert not output.endswith("recorded")


@pytest.mark.parametrize("moment", ["network: ", "Epoch 2/", "Epoch 55/"])
def test_a_training_is_not_recorded_with_settings_it_was_not_run_with(repo, moment):
    output = during(repo, "pretrain", moment, lambda repo: edit(repo, "params.yaml", "epochs: 60", "epochs: 1"))
    assert "error: pretrain.epochs in params.yaml: changed while the stage ran" in output
    assert not output.endswith("recorded")


def test_what_a_stage_does_not_read_may_change(repo):
    def accident(repo):
        edit(repo, "params.yaml", "dropout: 0.2", "dropout: 0.3")
        edit(repo, "stages/training/loop.py", "import math", "import  math")

    output = during(repo, "prepare", "data read", accident)
    assert "error" not in output
    assert "Updating lock file" in output or "Use `dvc push`" in output
