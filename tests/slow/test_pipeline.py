"""The pipeline through real `dvc` commands in a temporary repository, as a user would type them."""

import copy
import json
import multiprocessing
import os

import pytest
import yaml

from repository import REPRO, RESULTS, ROOT, Repository, stages_run, tiny_params

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository whose pipeline has run once and is committed with its results."""
    repo = Repository(tmp_path_factory.mktemp("pipeline"))
    assert stages_run(repo.dvc("repro")) == STAGES
    repo.commit("First run")
    return repo


def test_code_that_changes_no_output_runs_no_further_stage(repo):
    path = repo.path / "stages/images/split.py"
    before = path.read_text()
    path.write_text(before + "# changed\n")
    assert stages_run(repo.dvc("repro")) == ["prepare"]
    path.write_text(before)
    assert stages_run(repo.dvc("repro")) == []  # DVC's run cache has it


def test_a_forced_rerun_in_the_queue_writes_the_same_bytes(repo):
    before = repo.bytes_of(*RESULTS)
    repo.dvc("exp", "run", "--queue", "--force", "-n", "again")
    repo.dvc("queue", "start")
    assert stages_run(repo.dvc("queue", "logs", "--follow", "again")) == STAGES
    repo.run("sh", "-c", "for i in $(seq 60); do dvc queue status | grep -q Success && exit; sleep 1; done; exit 1")
    repo.dvc("exp", "apply", "again")
    assert repo.bytes_of(*RESULTS) == before


def first_core_alone():
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def load_one_core(stop):
    first_core_alone()
    while not stop.is_set():
        pass


def test_surroundings_change_no_byte(repo, tmp_path):
    """Another path, hash seed, locale, time zone and umask, fewer cores than threads, and those busy.

    Nor is anything left in the temporary folder.
    """
    path, temporary = tmp_path / "ein Ordner für Prüfungen, 二", tmp_path / "temporary"
    path.mkdir()
    temporary.mkdir()
    other = Repository(path).with_processes_of_its_own()
    other.environment |= {"PYTHONHASHSEED": "271828", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "TMPDIR": str(temporary)}
    stop = multiprocessing.get_context("spawn").Event()
    load = multiprocessing.get_context("spawn").Process(target=load_one_core, args=(stop,))

    def surroundings():
        os.umask(0o077)
        first_core_alone()

    load.start()
    try:
        output = other.run(*REPRO, preexec_fn=surroundings).stdout
    finally:
        stop.set()
        load.join()
    assert stages_run(output) == STAGES
    assert other.bytes_of(*RESULTS) == repo.bytes_of(*RESULTS)
    assert not list(temporary.iterdir())


def renamed(entries):
    return json.loads(json.dumps(entries).replace("finetune_fc", "finetune_all"))


def test_a_third_variant_needs_no_python(repo):
    """As docs/settings.md describes it: a section in params.yaml, a stage in dvc.yaml, its name and files in report."""
    params = tiny_params()
    params["finetune_all"] = copy.deepcopy(params["finetune_fc"])
    params["finetune_all"]["trainable"] = ["conv1", "conv2", "fc1", "fc2", "output"]
    (repo.path / "params.yaml").write_text(yaml.safe_dump(params))
    pipeline = yaml.safe_load((repo.path / "dvc.yaml").read_text())
    pipeline["stages"]["finetune_all"] = renamed(pipeline["stages"]["finetune_fc"])
    report = pipeline["stages"]["report"]
    report["cmd"] += " finetune_all"
    report["deps"] += renamed([dep for dep in report["deps"] if "finetune_fc" in dep])
    (repo.path / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    assert sorted(stages_run(repo.dvc("repro"))) == ["finetune_all", "report"]
    metrics = json.loads((repo.path / "reports/metrics.json").read_text())
    assert metrics["finetune_all"]["trainable_parameters"] == metrics["pretrain"]["trainable_parameters"]
    assert (repo.path / "reports/figures/confusion_finetune_all.png").exists()
