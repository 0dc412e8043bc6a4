"""Kills, full disks, concurrent runs, other environments: the next `dvc repro` ends with the same bytes."""

import os
import re
import resource
import sys
import time

import yaml

from repository import REPRO, RESULTS, ROOT, STAGES, Repository, stages_run, tiny_params, wait_for
from tools.settings_page import outputs


def test_after_kills_and_full_disks_the_next_repro_ends_with_the_same_bytes(tmp_path):
    """At random times and during writes, as `benchmarks/kills.py` does it many more times."""
    repo = Repository(tmp_path)
    counts = {"--kills": 3, "--writes": 8}
    arguments = [str(word) for option in counts.items() for word in option]
    output = repo.run(sys.executable, "benchmarks/kills.py", *arguments, "--seed", str(os.getpid()))
    assert "failed: none of" in output


def test_a_stage_whose_dvc_was_killed_writes_no_output(repo):
    """It would write among the outputs of the next `dvc repro`."""
    (repo.path / "models/pretrain.keras").unlink()
    process, log = repo.start(*REPRO, "--force", "--single-item", "pretrain")
    wait_for("Epoch 1/", process, log)
    process.kill()
    process.wait()
    time.sleep(3)  # a training of two tiny epochs would have ended
    assert not (repo.path / "models/pretrain.keras").exists()


def test_a_limit_on_file_size_ends_each_stage_in_one_line_and_leaves_no_partial_file(repo):
    reference = repo.bytes_of(*RESULTS)
    sizes = {"prepare": 1_000, "pretrain": 1_000, "finetune_output": 100, "finetune_fc": 20_000, "report": 2_000}
    for stage, size in sizes.items():
        written = [f"{path}/*" if (repo.path / path).is_dir() else path for path in outputs(STAGES[stage])]
        before = repo.bytes_of(*written)
        for path in before:
            (repo.path / path).unlink()
        repo.stage_error(stage, preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        after = repo.bytes_of(*written)
        assert after.items() < before.items()
        repo.dvc("repro")
        assert repo.bytes_of(*RESULTS) == reference


def test_of_two_concurrent_repros_one_completes_and_the_other_names_the_lock(repo):
    reference = repo.bytes_of(*RESULTS)
    repo.run("git", "clean", "-fdxq")
    started = [repo.start(*REPRO) for _ in range(2)]
    codes = [process.wait() for process, _ in started]
    output = "".join(log.read_text() for _, log in started)
    assert 0 in codes
    assert codes == [0, 0] or "is busy, it is being blocked by" in output or "Unable to acquire lock" in output
    assert repo.bytes_of(*RESULTS) == reference


def test_two_concurrent_experiments_record_the_settings_of_their_numbers_or_nothing(repo):
    """In one folder DVC saves neither, as a rule; a second attempt saves each.

    Seldom it undoes the settings of the first before its stages begin, which then run with the committed ones.
    """
    committed = tiny_params()["finetune_fc"]["epochs"]
    repo.commit("First run")
    epochs = {"three": 3, "four": 4}
    commands = {name: ("exp", "run", "-n", name, "-S", f"finetune_fc.epochs={n}") for name, n in epochs.items()}
    started = [repo.start(sys.executable, "-m", "dvc", *command) for command in commands.values()]
    assert all("Traceback" not in log.read_text() for process, log in started if process.wait())
    for name, command in commands.items():
        if name not in repo.dvc("exp", "list", "--name-only"):
            repo.dvc(*command)
        repo.dvc("exp", "apply", name)
        recorded = yaml.safe_load((repo.path / "params.yaml").read_text())["finetune_fc"]["epochs"]
        assert recorded in (epochs[name], committed)
        assert len((repo.path / "reports/finetune_fc/history.csv").read_text().splitlines()) == 1 + recorded


def test_a_forced_rerun_in_the_queue_writes_the_same_bytes(repo):
    reference = repo.bytes_of(*RESULTS)
    repo.commit("First run")
    repo.dvc("exp", "run", "--queue", "--force", "-n", "again")
    repo.dvc("queue", "start")
    assert stages_run(repo.dvc("queue", "logs", "--follow", "again")) == list(STAGES)
    repo.run("sh", "-c", "for i in $(seq 60); do dvc queue status | grep -q Success && exit; sleep 1; done; exit 1")
    repo.dvc("exp", "apply", "again")
    assert repo.bytes_of(*RESULTS) == reference


def test_another_environment_changes_no_byte_and_keeps_no_temporary_file(repo, tmp_path):
    """Another path, hash seed, locale, time zone and umask; one core for two threads, and that core busy."""
    path, temporary = tmp_path / "ein Ordner für Prüfungen, 二", tmp_path / "temporary"
    temporary.mkdir()
    other = Repository(path)
    other.environment |= {"PYTHONHASHSEED": "271828", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "TMPDIR": str(temporary)}
    other.environment["XDG_CACHE_HOME"] = "/proc/none"  # which cannot be written
    core = {min(os.sched_getaffinity(0))}
    output = other.run(
        "sh", "-c", "yes >/dev/null & dvc repro; kill $!",
        preexec_fn=lambda: (os.umask(0o077), os.sched_setaffinity(0, core)),
    )  # fmt: skip
    assert stages_run(output) == list(STAGES)
    assert other.bytes_of(*RESULTS) == repo.bytes_of(*RESULTS)
    assert not list(temporary.iterdir())
    (temporary / "sitecustomize.py").write_text(re.search("^UTF8 := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1])
    other.environment["PYTHONPATH"] = str(temporary)  # as `make setup` has every Python start
    other.commit("First run")
    other.dvc("exp", "run", "--temp", "-n", "in-a-copy", "-S", "finetune_fc.epochs=1")
    assert "in-a-copy" in other.dvc("exp", "list", "--name-only")
