"""Studies through DVC's queue: refused, killed at any point, failed; and the page they end with."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from repository import ROOT, Repository, wait_for
from studies import workspace

COMMAND = (sys.executable, "-m", "studies", "studies/tiny.yaml")
NAME = "tiny_pretrained_10_s1"


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with the digits' plan cut down to one experiment on few images, nothing run."""
    plan = yaml.safe_load((ROOT / "studies/digits.yaml").read_text())
    plan |= {"seeds": [1], "settings": {"data.validation_fraction": 0.25}, "questions": plan["questions"][-1:]}
    plan |= {"images_per_class": {10: {"data.target_per_class": 10}}, "runs": {"pretrained": {"pretrain.epochs": 1}}}
    plan["models"] = {way: {"pretrained": origins["pretrained"]} for way, origins in plan["models"].items()}
    plan["choices"][0]["images_per_class"] = 10
    repo = Repository(tmp_path_factory.mktemp("study of two")).with_processes_of_its_own()
    (repo.path / "studies/tiny.yaml").write_text(yaml.safe_dump(plan))
    repo.commit("A plan")
    return repo


def test_a_study_refuses_code_that_is_not_committed(repo):
    repo.run("cp", "stages/prepare.py", "stages/report.py")
    output = repo.run(*COMMAND, check=False).stdout
    repo.run("git", "checkout", "-q", "stages/report.py")
    assert "stages/report.py: changed since the last commit" in output


@pytest.mark.parametrize("left_in_stash", [True, False])
def test_what_a_kill_while_queueing_leaves_is_undone(repo, monkeypatch, left_in_stash):
    """As DVC's steps come: the user's changes into the stash, HEAD detached, params.yaml of a run, its own stash."""
    monkeypatch.chdir(repo.path)
    readme, params = repo.path / "README.md", repo.path / "params.yaml"
    readme.write_text(readme.read_text() + "changed\n")
    before = readme.read_text(), params.read_text()
    killed = "import os; from studies import workspace\nwith workspace.noted(): os.kill(os.getpid(), 9)"
    repo.run(sys.executable, "-c", killed, check=False)
    repo.run("git", "stash", "push", "-q")
    repo.run("git", "checkout", "-q", "--detach")
    params.write_text("seed: 7\n")
    repo.run("git", "add", "params.yaml")
    if left_in_stash:
        repo.run("git", "stash", "push", "-q", "-m", "dvc-exp:1:1:tiny")
    (repo.path / ".git/index.lock").touch()
    workspace.mend()
    assert repo.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert (readme.read_text(), params.read_text()) == before
    assert repo.run("git", "stash", "list").stdout == ""
    assert not workspace.NOTE.exists()
    repo.run("git", "checkout", "-q", "README.md")


def killed_at(repo: Repository, text: str, seconds: float = 0) -> None:
    """Start the study, and kill it and all that it started so many seconds after it has printed a text."""
    started, log = repo.start(*COMMAND)
    wait_for(text, started, log)
    time.sleep(seconds)
    # DVC's worker, its experiment, a stage: whatever runs in the folder.
    while running := [p for p in psutil.process_iter(["cwd"]) if Path(p.info["cwd"] or "/").is_relative_to(repo.path)]:
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.poll()
        time.sleep(0.1)


def test_killed_with_all_its_processes_it_goes_on_and_writes_the_same_page(repo):
    page = repo.path / "reports/study.md"
    killed_at(repo, "queueing 1 of 1", 0.6)
    killed_at(repo, "running: tiny_")
    assert "queueing 1 of 1" in repo.run(*COMMAND).stdout
    disturbed = page.read_text()
    assert "queueing" not in repo.run(*COMMAND).stdout
    assert NAME in repo.dvc("exp", "show", "--csv")
    assert repo.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert repo.run("git", "status", "--short", "--untracked-files=no").stdout == ""

    repo.dvc("exp", "remove", NAME)
    page.unlink()
    assert "queueing 1 of 1" in repo.run(*COMMAND).stdout
    assert page.read_text() == disturbed


def test_other_settings_replace_a_run_and_a_failed_one_is_named_and_run_again_only_when_asked(repo):
    failing = (*COMMAND, "-S", "data.source_classes=[0, 70]")
    result = repo.run(*failing, check=False)
    assert f"queueing 1 of 1: {NAME}" in result.stdout
    assert f"{NAME}: error: params.yaml: data.source_classes: was 70" in result.stdout
    assert result.returncode == 1
    assert "queueing" not in repo.run(*failing, check=False).stdout
    assert "queueing" in repo.run(*failing, "--retry", check=False).stdout
