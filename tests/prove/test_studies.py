"""Studies on one machine and on a cluster: refused, killed, failed; the page at the end is the same."""

import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from distributed import Client

from repository import ROOT, Repository, wait_for
from studies import worker
from studies.cluster import connect

COMMAND = (sys.executable, "-m", "studies", "studies/tiny.yaml")
NAME = "tiny_pretrained_10_s1"
PAGE = "results/tiny/README.md"


def with_plan(path: Path) -> Repository:
    """Make a repository with the plan for MNIST, cut down to two experiments that share all but `finetune_fc`."""
    plan = yaml.safe_load((ROOT / "studies/mnist.yaml").read_text())
    plan |= {"seeds": [1], "settings": {"data.validation_fraction": 0.25, "pretrain.epochs": 1}, "choices": []}
    plan |= {"images_per_class": {10: {"data.target_per_class": 10}}, "questions": plan["questions"][1:2]}
    plan["runs"] = {"pretrained": {}, "random": {"finetune_fc.learning_rate": 0.002}}
    repo = Repository(path)
    (repo.path / "studies/tiny.yaml").write_text(yaml.safe_dump(plan))
    repo.commit("A plan")
    return repo


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return with_plan(tmp_path_factory.mktemp("a study"))


def processes_in(folder: Path, argument: str = "") -> list[psutil.Process]:
    """List the processes whose working directory is in a folder, with an argument if given."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder) and (argument in process.cmdline() or not argument):
                found.append(process)
    return found


def logs(repo: Repository) -> list[str]:
    """Read what the experiments named `NAME` have printed."""
    return [path.read_text() for path in repo.path.glob(f".dvc/tmp/studies/{NAME}_*.log")]


def test_uncommitted_code_and_a_cluster_without_a_git_remote_are_refused(repo):
    repo.run("cp", "stages/prepare.py", "stages/report.py")
    output = repo.run(*COMMAND, check=False)
    repo.run("git", "checkout", "-q", "stages/report.py")
    assert "stages/report.py: changed since the last commit" in output
    assert "through Git's remote origin" in repo.run(*COMMAND, "--scheduler", "tcp://127.0.0.1:9", check=False)


def test_a_killed_study_resumes_and_writes_the_same_page_while_the_user_edits(repo):
    readme = repo.path / "README.md"
    readme.write_text("edited\n")
    started, log = repo.start(*COMMAND)
    wait_for("running: tiny_", started, log)
    while not any("Epoch 1/" in text.partition("stage 'finetune_output'")[2] for text in logs(repo)):
        time.sleep(0.1)
    started.kill()
    started.wait()
    end = time.monotonic() + 5
    while left := processes_in(repo.path):  # they end by themselves
        assert time.monotonic() < end, left
    assert "1 of 2 ended" in repo.run(*COMMAND)
    page = (repo.path / PAGE).read_text()
    assert "ended" not in repo.run(*COMMAND)  # nothing was left to do
    name = re.search(rf"{NAME}_\w+", repo.dvc("exp", "show", "--csv"))[0]
    assert repo.run("git", "status", "--short", "--untracked-files=no") == " M README.md\n"
    assert readme.read_text() == "edited\n"

    repo.dvc("exp", "remove", name)
    assert "1 of 2 ended" in repo.run(*COMMAND)
    assert (repo.path / PAGE).read_text() == page
    assert any("is cached - skipping run" in text for text in logs(repo))


def test_a_failed_experiment_is_named_and_repeated_only_on_request(repo):
    failing = (*COMMAND, "-S", "data.source_classes=[0, 70]")
    output = repo.run(*failing, check=False)
    assert re.search(rf"{NAME}_\w+: error: params.yaml: data.source_classes: was 70", output)
    assert "running" not in repo.run(*failing, check=False)
    assert "running" in repo.run(*failing, "--retry", check=False)
    assert repo.run("git", "for-each-ref", "refs/exps").count("/tiny_") == 2  # those of the plan itself stay


def test_a_page_says_how_many_images_all_are_and_which_runs_are_left_out(repo):
    path = repo.path / "studies/tiny.yaml"
    plan = yaml.safe_load(path.read_text()) | {"images_per_class": {"all": {}}}
    path.write_text(yaml.safe_dump(plan))
    repo.run(*COMMAND)
    plan["images_per_class"] |= {12: {}, 9999: {}}
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    assert "time is up: 2 are not started" in repo.run(*COMMAND, "--minutes", "0")
    repo.run("git", "checkout", "-q", str(path))
    page = (repo.path / PAGE).read_text()
    assert re.search(r"not run yet.* 2 experiments: tiny_pretrained_12_s1_\w+, tiny_random_12", page)
    assert re.search(r"hardly more: 9999 images per class\n", page)
    assert re.search(r"with (?!12 )\d+ images per class: no other settings\n", page)


def test_a_study_runs_in_a_folder_of_its_repository_and_refuses_missing_data_and_a_shallow_clone(tmp_path):
    (tmp_path / "top").mkdir()
    repo = with_plan(tmp_path / "top/vision")
    repo.run("sh", "-c", "rm -rf .git; git init -q ..; echo 'home*' > ../.gitignore")
    repo.commit("A folder")
    missing = "data.path: was 'data/raw/none.npz', expected a path that the last commit has"
    assert missing in repo.run(*COMMAND, "-S", "data.path=data/raw/none.npz", check=False)
    repo.run(*COMMAND)
    assert "2 experiments" in (repo.path / PAGE).read_text()
    repo.run("sh", "-c", "git rev-parse HEAD > ../.git/shallow")
    refused = repo.run(*COMMAND, check=False)
    assert refused.endswith("type `git fetch --unshallow`\n")


def start_machine(repo: Repository, folder: Path, scheduler: Path) -> subprocess.Popen:
    """Start a Dask worker with a home and caches of its own, as on another machine."""
    (folder / "home").mkdir(parents=True)
    own = {"HOME": f"{folder}/home", "XDG_CACHE_HOME": f"{folder}/cache", "KERAS_HOME": f"{folder}/keras"}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(scheduler)]
    return repo.start(*command, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder), **own)[0]


def trainings(folder: Path) -> dict[Path, str]:
    """Return the entries of a machine's DVC run cache, pulled ones included, with the training of each."""
    runs = folder / "cache/transfer-learning-pipeline/studies/runs"
    texts = {path.relative_to(runs): path.read_text() for path in runs.rglob("*") if path.is_file()}
    return {path: found[0] for path, text in texts.items() if (found := re.search("pretrain\n|finetune_.*", text))}


def test_a_cluster_that_loses_a_worker_and_its_coordinator_writes_the_same_page_and_trains_nothing_twice(tmp_path):
    here = with_plan(tmp_path / "here")
    here.run("git", "clone", "-q", "--bare", ".", str(tmp_path / "origin.git"))
    here.run("git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    here.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    here.commit("A remote")
    scheduler = tmp_path / "scheduler.json"
    cluster = (*COMMAND, "--scheduler-file", str(scheduler))
    dask, _ = here.start(sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
                         "--scheduler-file", str(scheduler))  # fmt: skip
    machines = [tmp_path / f"machine {i}" for i in range(3)]
    processes = [dask]
    try:
        while not scheduler.exists():
            time.sleep(0.1)
        assert "is not on Git's remote" in here.run(*cluster, check=False)
        here.run("git", "push", "-q", "origin", "main")
        processes += [start_machine(here, machine, scheduler) for machine in machines[:2]]
        coordinator, log = here.start(*cluster)
        while not (pretraining := processes_in(tmp_path, "stages.pretrain")):
            assert coordinator.poll() is None, log.read_text()
            time.sleep(0.01)
        pretraining[0].parent().parent().kill()  # the stage's parent is `dvc`, whose parent is the worker
        time.sleep(1)
        coordinator.kill()
        processes.append(start_machine(here, machines[2], scheduler))
        output = here.run(*cluster)
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    trained = {path: command for machine in machines for path, command in trainings(machine).items()}
    assert len(trained) == len({path.parent for path in trained}) == 4, (trained, output)  # finetune_fc twice
    assert here.dvc("exp", "show", "--csv").count("tiny_") == 2

    alone = here.clone(tmp_path / "alone")
    alone.run(*COMMAND)
    assert (alone.path / PAGE).read_bytes() == (here.path / PAGE).read_bytes()


def test_a_local_cluster_refuses_clients_without_its_certificate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with connect({}, 1) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(OSError):
            Client(address.replace("tls", "tcp"), timeout=2)


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("true", "done", "^$"),
        ("rm -r origin.git", "unusable", "git: fatal: .*origin.git"),
        ("mv origin.git o; git clone -q --bare --depth 1 file://$PWD/o origin.git", "unusable", "fetch --unshallow"),
        ("touch store", "unusable", "Error: .*store"),
        ("cd origin.git/hooks; echo 'echo full; exit 1' > update; chmod +x *", "interrupted", "remote: full"),
    ],
)
def test_a_worker_gives_the_reason_why_it_cannot_use_a_remote(fault, status, reason, tmp_path, monkeypatch):
    (tmp_path / "here/.dvc").mkdir(parents=True)
    (tmp_path / "here/.dvc/config").write_text(f"[core]\nremote = s\n['remote \"s\"']\nurl = {tmp_path}/store\n")
    commit = "git -c user.name=a -c user.email=a@example.org commit -q --allow-empty"
    make = f"cd here; git init -q; git add .; {commit} -m 1; {commit} -m 2; git clone -q --bare . ../origin.git"
    head = f"({make}); {fault}; git -C {tmp_path}/here rev-parse HEAD"
    commit = subprocess.check_output(["sh", "-ec", head], cwd=tmp_path, text=True).strip()
    base = worker.Base(f"{tmp_path}/origin.git", "", commit, "a", "a@example.org", cache=None)
    dask = SimpleNamespace(local_directory=tmp_path, log_event=lambda *event: None)
    monkeypatch.setattr(worker, "get_worker", lambda: dask)
    monkeypatch.setattr(worker, "DVC", ("sh", "-c", f"git update-ref {base.ref('x')} HEAD"))
    outcome = worker.run_experiment(base, "x", [], push_pretraining=False)
    assert outcome.status == status
    assert re.search(reason, outcome.reason), outcome.reason
