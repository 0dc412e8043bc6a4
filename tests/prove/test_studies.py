"""Studies on one machine and on several: refused, killed at any point, failed; and the page they end with."""

import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from repository import ROOT, Repository, stages_run, wait_for

COMMAND = (sys.executable, "-m", "studies", "studies/tiny.yaml")
NAME = "tiny_pretrained_10_s1"
PAGE = "reports/study.md"


def tiny_plan() -> dict:
    """The digits' plan, cut down to few images, one seed, and two runs that share all but `finetune_fc`."""
    plan = yaml.safe_load((ROOT / "studies/digits.yaml").read_text())
    plan |= {"seeds": [1], "settings": {"data.validation_fraction": 0.25, "pretrain.epochs": 1}, "choices": []}
    plan |= {"images_per_class": {10: {"data.target_per_class": 10}}, "questions": plan["questions"][1:2]}
    plan["runs"] = {"pretrained": {}, "random": {"finetune_fc.learning_rate": 0.002}}
    return plan


def with_plan(path: Path) -> Repository:
    repo = Repository(path)
    (repo.path / "studies/tiny.yaml").write_text(yaml.safe_dump(tiny_plan()))
    repo.commit("A plan")
    return repo


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with a plan of two experiments, nothing run."""
    return with_plan(tmp_path_factory.mktemp("a study")).with_processes_of_its_own()


def test_a_study_refuses_code_that_is_not_committed_and_several_machines_without_a_remote(repo):
    repo.run("cp", "stages/prepare.py", "stages/report.py")
    output = repo.run(*COMMAND, check=False).stdout
    repo.run("git", "checkout", "-q", "stages/report.py")
    assert "stages/report.py: changed since the last commit" in output
    assert "through Git's remote origin" in repo.run(*COMMAND, "--scheduler", "tcp://127.0.0.1:9", check=False).stdout


def below(folder: Path) -> list[psutil.Process]:
    """The processes that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def test_killed_it_goes_on_and_writes_the_same_page_while_the_user_edits(repo):
    readme = repo.path / "README.md"
    readme.write_text("edited\n")
    started, log = repo.start(*COMMAND)
    wait_for("running: tiny_", started, log)
    printed = repo.path / f".dvc/tmp/studies/{NAME}.log"
    while not printed.exists() or "Epoch 1/" not in printed.read_text().partition("stage 'finetune_output'")[2]:
        time.sleep(0.1)
    started.kill()
    started.wait()
    for _ in range(50):  # what it started ends by itself
        if not (left := below(repo.path)):
            break
        time.sleep(0.1)
    assert not left
    output = repo.run(*COMMAND).stdout
    assert "1 of 2 ended" in output
    page = (repo.path / PAGE).read_text()
    assert "ended" not in repo.run(*COMMAND).stdout  # all was done
    assert NAME in repo.dvc("exp", "show", "--csv")
    assert repo.run("git", "status", "--short", "--untracked-files=no").stdout == " M README.md\n"
    assert readme.read_text() == "edited\n"

    repo.dvc("exp", "remove", NAME)
    assert "1 of 2 ended" in repo.run(*COMMAND).stdout
    assert (repo.path / PAGE).read_text() == page
    assert "is cached - skipping run" in printed.read_text()


def test_other_settings_replace_a_run_and_a_failed_one_is_named_and_run_again_only_when_asked(repo):
    failing = (*COMMAND, "-S", "data.source_classes=[0, 70]")
    result = repo.run(*failing, check=False)
    assert f"again: {NAME}: its settings differ" in result.stdout
    assert f"{NAME}: error: params.yaml: data.source_classes: was 70" in result.stdout
    assert result.returncode == 1
    assert "running" not in repo.run(*failing, check=False).stdout
    assert "running" in repo.run(*failing, "--retry", check=False).stdout


def trains(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "stages.pretrain" in process.cmdline()
    return False


class Machine:
    """A machine with a home and caches of its own, that runs one Dask worker."""

    def __init__(self, repo: Repository, folder: Path, scheduler: Path):
        self.folder = folder
        (folder / "home").mkdir(parents=True)
        surroundings = {"HOME": f"{folder}/home", "XDG_CACHE_HOME": f"{folder}/cache", "KERAS_HOME": f"{folder}/keras"}
        command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(scheduler)]
        command += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
        self.process, self.log = repo.start(*command, **surroundings)

    def trained(self) -> dict[Path, str]:
        """The trainings that DVC's run cache here knows of, those that were pulled, too: each entry's command."""
        runs = self.folder / "cache/transfer-learning-pipeline/studies/runs"
        entries = {path.relative_to(runs): path.read_text() for path in runs.rglob("*") if path.is_file()}
        return {
            path: found[0] for path, text in entries.items() if (found := re.search("pretrain\n|finetune_.*", text))
        }


def test_on_a_cluster_that_loses_workers_and_its_coordinator_it_is_the_same_page_and_nothing_is_trained_twice(tmp_path):
    here = with_plan(tmp_path / "here")
    here.run("git", "clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))
    here.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    here.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    here.commit("A remote")
    scheduler = tmp_path / "scheduler.json"
    cluster = (*COMMAND, "--scheduler-file", str(scheduler))
    dask, _ = here.start(sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
                         "--scheduler-file", str(scheduler))  # fmt: skip
    machines = []
    try:
        while not scheduler.exists():
            time.sleep(0.1)
        assert "is not on Git's remote" in here.run(*cluster, check=False).stdout
        here.run("git", "push", "-q", "origin", "main")
        machines = [Machine(here, tmp_path / f"machine {i}", scheduler) for i in range(2)]
        coordinator, log = here.start(*cluster)
        while not (training := [p for machine in machines for p in below(machine.folder) if trains(p)]):
            assert coordinator.poll() is None, log.read_text()
            time.sleep(0.01)
        training[0].parent().parent().kill()  # of the stage: `dvc`; of that: Dask's worker
        time.sleep(1)
        coordinator.kill()
        machines.append(Machine(here, tmp_path / "machine 2", scheduler))
        output = here.run(*cluster).stdout
    finally:
        for process in (dask, *(machine.process for machine in machines)):
            process.terminate()
            process.wait()
    page = (here.path / PAGE).read_bytes()
    trained = {path: command for machine in machines for path, command in machine.trained().items()}
    assert len(trained) == len({path.parent for path in trained}) == 4, (trained, output)  # finetune_fc twice
    assert here.dvc("exp", "show", "--csv").count("tiny_") == 2

    alone = here.clone(tmp_path / "alone")
    alone.run("git", "config", "user.name", "A Tester")
    alone.run("git", "config", "user.email", "tester@example.org")
    (alone.path / "data/raw/tiny.npz").write_bytes((here.path / "data/raw/tiny.npz").read_bytes())
    alone.run(*COMMAND)
    assert (alone.path / PAGE).read_bytes() == page


def test_a_second_machine_trains_nothing_that_the_first_has_pushed(tmp_path):
    first = Repository(tmp_path / "first")
    first.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    first.commit("A remote")
    first.dvc("repro")
    first.dvc("push", "--run-cache")
    second = first.clone(tmp_path / "second")
    second.run("git", "config", "user.name", "A Tester")
    second.run("git", "config", "user.email", "tester@example.org")
    assert not (second.path / "dvc.lock").exists()
    assert stages_run(second.dvc("exp", "run", "--pull")) == ["report"]
    assert second.bytes_of("models/*.keras") == first.bytes_of("models/*.keras")
