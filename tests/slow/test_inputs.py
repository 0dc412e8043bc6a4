"""Nothing is recorded that was not run: an input that changes while a stage runs ends it, with real `dvc`."""

import io

import numpy as np
import pytest

from repository import REPRO, Repository, stages_run, tiny_params, wait_for
from tiny import tiny_arrays


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository in which only `pretrain` is still to be run, with some seconds of training."""
    params = tiny_params()
    params["pretrain"] |= {"epochs": 100, "batch_size": 8}
    repo = Repository(tmp_path_factory.mktemp("inputs"), params)
    repo.dvc("repro", "prepare")
    return repo


def changed_while_running(repo, stage: str, moment: str, path: str, content: bytes) -> str:
    """Run a stage, change a file while it runs, after it has printed `moment`, and return all that was printed."""
    kept = (repo.path / path).read_bytes()
    assert content != kept
    process, log = repo.start(*REPRO, stage)
    wait_for(moment, process, log)
    (repo.path / path).write_bytes(content)
    process.wait()
    (repo.path / path).write_bytes(kept)
    return log.read_text()


@pytest.mark.parametrize(
    ("path", "before", "after", "named"),
    [
        ("params.yaml", b"epochs: 100", b"epochs: 1", "pretrain.epochs in params.yaml"),
        ("stages/training/loop.py", b"TerminateOnNaN()", b"TerminateOnNaN(), ", "stages/training/loop.py"),
    ],
)
def test_an_input_that_changes_while_a_stage_runs_is_named_and_nothing_recorded(repo, path, before, after, named):
    lock = (repo.path / "dvc.lock").read_bytes()
    changed = (repo.path / path).read_bytes().replace(before, after)
    output = changed_while_running(repo, "pretrain", "Epoch 2/", path, changed)
    assert f"error: {named}: changed while the stage ran, so nothing is recorded; type `dvc repro` again" in output
    assert "Traceback" not in output
    assert (repo.path / "dvc.lock").read_bytes() == lock


def test_what_a_stage_does_not_read_may_change(repo):
    changed = (repo.path / "params.yaml").read_bytes().replace(b"head: keep", b"head: reset")
    assert "Updating lock file" in changed_while_running(repo, "pretrain", "Epoch 2/", "params.yaml", changed)
    assert stages_run(repo.dvc("repro", "pretrain")) == []


def test_data_replaced_after_it_was_read_is_not_recorded(repo):
    """`prepare` is too short to be met: it is slowed down once it has read."""
    code = repo.path / "stages/prepare.py"
    slow = "    print('has read', flush=True)\n    __import__('time').sleep(2)\n"
    code.write_text(code.read_text().replace("source.load(path)\n", "source.load(path)\n" + slow))
    other = io.BytesIO()
    np.savez(other, **tiny_arrays(seed=1))
    output = changed_while_running(repo, "prepare", "has read", "data/raw/tiny.npz", other.getvalue())
    assert "error: data/raw/tiny.npz: changed while the stage ran" in output
