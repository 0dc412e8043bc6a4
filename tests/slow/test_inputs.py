"""Nothing is recorded that was not run: an input that changes while a stage runs ends it, with real `dvc`."""

import subprocess
import sys
import time

import numpy as np
import pytest

from repository import Repository, stages_run, tiny_arrays, tiny_params

SETTING = ("params.yaml", b"epochs: 40", b"epochs: 1", "pretrain.epochs in params.yaml")
CODE = ("stages/training/loop.py", b"import math", b"import math  # changed", "stages/training/loop.py")


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository in which only `pretrain` is still to be run, with some seconds of training."""
    params = tiny_params()
    params["pretrain"] |= {"epochs": 40, "batch_size": 8}
    repo = Repository(tmp_path_factory.mktemp("inputs"), params)
    repo.dvc("repro", "prepare")
    return repo


def changed_while_running(repo, moment, path, before, after) -> str:
    """Run `pretrain`, replace something in a file at a moment of its output, and return all that was printed."""
    kept = (repo.path / path).read_bytes()
    changed = kept.replace(before, after)
    assert changed != kept
    log = repo.path.with_name("log")
    with log.open("w") as file:
        command = [sys.executable, "-m", "dvc", "repro", "pretrain"]
        process = subprocess.Popen(command, cwd=repo.path, env=repo.environment, stdout=file, stderr=file)
    while moment not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    (repo.path / path).write_bytes(changed)
    process.wait()
    (repo.path / path).write_bytes(kept)
    return log.read_text()


@pytest.mark.parametrize(
    ("moment", "change"),
    [("Epoch 1/", SETTING), ("Epoch 20/", SETTING), ("Epoch 2/", CODE)],
    ids=["early", "late", "code"],
)
def test_an_input_that_changes_while_a_stage_runs_is_named_and_nothing_recorded(repo, moment, change):
    *change, named = change
    lock = (repo.path / "dvc.lock").read_bytes()
    output = changed_while_running(repo, moment, *change)
    assert f"error: {named}: changed while the stage ran, so nothing is recorded; type `dvc repro` again" in output
    assert "Traceback" not in output
    assert (repo.path / "dvc.lock").read_bytes() == lock


def test_what_a_stage_does_not_read_may_change(repo):
    other = changed_while_running(repo, "Epoch 2/", "params.yaml", b"head: keep", b"head: reset")
    assert "Updating lock file" in other
    assert stages_run(repo.dvc("repro", "pretrain")) == []


def test_data_replaced_after_it_was_read_is_not_recorded(repo):
    """`prepare` is too short to be met: its reading is slowed down."""
    source = repo.path / "stages/images/source.py"
    source.write_text(
        source.read_text().replace(
            "    pointer, file = find(path)", "    __import__('time').sleep(3)\n    pointer, file = find(path)"
        )
    )
    log = repo.path.with_name("log of prepare")
    with log.open("w") as file:
        command = [sys.executable, "-m", "dvc", "repro", "prepare"]
        process = subprocess.Popen(command, cwd=repo.path, env=repo.environment, stdout=file, stderr=file)
    time.sleep(4)
    np.savez(repo.path / "data/raw/tiny.npz", **tiny_arrays(seed=1))
    process.wait()
    assert "error: data/raw/tiny.npz: changed while the stage ran" in log.read_text()
