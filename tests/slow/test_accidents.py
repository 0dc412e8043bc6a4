"""Kills, full disks, two runs at once, damaged files: each heals or says what is wrong, none gives a wrong number.

`benchmarks/kills.py` kills at many more moments.
"""

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import yaml

from counting import counted
from repository import REPRO, RESULTS, ROOT, Repository, outputs, stages_run, wait_for

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
COMMANDS = {name: stage["cmd"].removeprefix("exec python -m ").split() for name, stage in STAGES.items()}
DIE = """
import os, pathlib, signal
write, link = pathlib.Path.write_bytes, os.link
def die_before_it_has_a_name(source, target, **options):
    if target.name == f".{os.environ.get('DIE_WRITING')}.unfinished":
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target, **options)
os.link = die_before_it_has_a_name
def die_in_the_middle(path, content):
    if path.name == f".{os.environ.get('DIE_WRITING')}.unfinished":
        write(path, bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)
pathlib.Path.write_bytes = die_in_the_middle
"""


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A repository whose pipeline has run once, and a copy of its folder."""
    path = tmp_path_factory.mktemp("accidents") / "repository"
    path.mkdir()
    repo = Repository(path)
    hook = path.with_name("hook")
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(DIE)
    repo.environment["PYTHONPATH"] = str(hook)
    assert stages_run(repo.dvc("repro")) == list(STAGES)
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    return repo, copy


@pytest.fixture
def repo(first_run):
    """The repository as the first run left it."""
    repo, copy = first_run
    shutil.rmtree(repo.path)
    shutil.copytree(copy, repo.path)
    return repo


@pytest.fixture
def reference(repo):
    return repo.bytes_of(*RESULTS)


def forget(repo, *stages: str) -> None:
    """Make it as if some stages had never run."""
    for path in (repo.path / name for stage in stages for name in outputs(STAGES[stage])):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(repo.path / ".dvc/cache/runs")
    recorded = yaml.safe_load((repo.path / "dvc.lock").read_text())
    recorded["stages"] = {name: entry for name, entry in recorded["stages"].items() if name not in stages}
    (repo.path / "dvc.lock").write_text(yaml.safe_dump(recorded))


def error(repo, name, **options) -> str:
    """The one line with which a stage ends, run without DVC."""
    result = subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]], cwd=repo.path, env=repo.environment, text=True,
        capture_output=True, timeout=300, check=False, **options,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def damage_in_cache(repo, path: str, content: bytes) -> None:
    """Change a file of DVC's cache and nothing else, as a failing disk does, and have DVC take it from there."""
    md5 = hashlib.md5((repo.path / path).read_bytes()).hexdigest()
    cached = repo.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    mode = cached.stat().st_mode
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(mode)
    (repo.path / path).unlink()
    assert stages_run(repo.dvc("repro", "pretrain")) == []


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def test_kills_in_the_middle_of_a_write_and_ctrl_c(repo, reference):
    forget(repo, *STAGES)
    ran = []
    for name in ("target.npz", "Ctrl-C", "finetune_output.keras", "report.md"):
        process, log = repo.start(*REPRO, DIE_WRITING=name)
        if name == "Ctrl-C":
            wait_for("Epoch 1/", process, log)
            os.killpg(process.pid, signal.SIGINT)
        assert process.wait() != 0
        assert repo.bytes_of(f"data/prepared/{name}", f"models/{name}", f"reports/{name}") == {}
        assert not list(repo.path.glob("data/prepared/.*.unfinished"))
        ran.append(stages_run(log.read_text()))
        counted["kills survived"] += 1
    assert ran == [
        ["prepare"],
        ["prepare", "pretrain"],
        ["pretrain", "finetune_output"],
        ["finetune_output", "finetune_fc", "report"],
    ]
    assert stages_run(repo.dvc("repro")) == ["report"]
    assert repo.bytes_of(*RESULTS) == reference


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process can be tied to the one that started it")
def test_a_stage_whose_dvc_was_killed_writes_no_output(repo):
    """It would write among those of the next `dvc repro`."""
    forget(repo, "pretrain")
    process, log = repo.start(*REPRO)
    wait_for("Epoch 1/", process, log)
    process.kill()
    process.wait()
    time.sleep(3)  # a training of two tiny epochs would have ended
    assert repo.bytes_of("models/pretrain.keras") == {}


@pytest.mark.parametrize(
    ("name", "size"),
    [("prepare", 0), ("prepare", 1_000), ("pretrain", 0), ("pretrain", 1_000), ("finetune_output", 100),
     ("finetune_fc", 20_000), ("report", 0), ("report", 2_000)],
)  # fmt: skip
def test_full_disk(repo, reference, name, size):
    """Emulated by a largest size of files."""
    written = [f"{path}/*" if (repo.path / path).is_dir() else path for path in outputs(STAGES[name])]
    before = repo.bytes_of(*written)
    for path in before:
        (repo.path / path).unlink()
    limit = (size, size)
    error(repo, name, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    after = repo.bytes_of(*written)
    assert {path for path, content in after.items() if path.endswith(".keras") and content != before[path]} == set()
    assert all(len(content) <= size for content in after.values())  # what is there is whole
    repo.dvc("repro")
    assert repo.bytes_of(*RESULTS) == reference


def test_two_at_once(repo, reference):
    forget(repo, "prepare")
    started = [repo.start(*REPRO) for _ in range(2)]
    codes = [process.wait() for process, _ in started]
    output = "".join(log.read_text() for _, log in started)
    assert 0 in codes
    assert codes == [0, 0] or "is busy, it is being blocked by" in output or "Unable to acquire lock" in output
    assert repo.bytes_of(*RESULTS) == reference


def test_two_experiments_at_once_record_what_was_run_or_nothing(repo):
    """In one folder DVC lets neither be saved, as a rule; typed again, each is."""
    repo.commit("First run")
    asked = {"three": 3, "four": 4}
    commands = {name: ("exp", "run", "-n", name, "-S", f"finetune_fc.epochs={n}") for name, n in asked.items()}
    started = [repo.start(sys.executable, "-m", "dvc", *command) for command in commands.values()]
    assert all("Traceback" not in log.read_text() for process, log in started if process.wait())
    for name, command in commands.items():
        if name not in repo.dvc("exp", "list", "--name-only"):
            repo.dvc(*command)
        repo.dvc("exp", "apply", name)
        assert yaml.safe_load((repo.path / "params.yaml").read_text())["finetune_fc"]["epochs"] == asked[name]
        assert len((repo.path / "reports/history/finetune_fc.csv").read_text().splitlines()) == 1 + asked[name]


def test_no_flipped_bit_of_a_model_is_loaded(repo, monkeypatch):
    """Not from Python 3.13 on, either, which compares no checksum of a file in a zip once another place was sought."""
    from stages.shared.errors import UserError
    from stages.training import model_files  # not above: imports TensorFlow

    seek = zipfile.ZipExtFile.seek

    def seek_unchecked(file, *arguments):
        file._expected_crc = None
        return seek(file, *arguments)

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek_unchecked)
    path = repo.path / "models/pretrain.keras"
    content, weights = path.read_bytes(), model_files.load(path).get_weights()
    places = random.Random(0).sample(range(len(content)), 20)
    for kernel in (weights[0], weights[-2]):
        start_of_it = content.index(kernel.tobytes())
        places += range(start_of_it, start_of_it + kernel.nbytes, 37)
    for place in places:
        path.write_bytes(flipped(content, place))
        try:
            loaded = model_files.load(path).get_weights()
        except UserError:
            continue
        assert all(np.array_equal(*pair) for pair in zip(weights, loaded, strict=True)), f"byte {place}"


def test_a_damaged_model_in_the_cache_is_refused_and_made_anew(repo, reference):
    content = (repo.path / "models/pretrain.keras").read_bytes()
    damage_in_cache(repo, "models/pretrain.keras", flipped(content, len(content) // 2))
    assert "models/pretrain.keras" in error(repo, "finetune_fc")
    repo.run("chmod", "-R", "u+w", ".dvc/cache/files")  # DVC checks only what may be written
    assert "pretrain" in stages_run(repo.dvc("repro"))
    assert repo.bytes_of(*RESULTS) == reference


@pytest.mark.parametrize(
    ("path", "number", "other"),
    [
        ("reports/record/pretrain.json", r'("test_loss": )', r"\g<1>7"),
        ("reports/predictions/pretrain.csv", r"\n(\w+),(?!\1,)(\w+),0\.", r"\n\1,\2,0.99"),
        ("reports/history/pretrain.csv", r"\n1,0\.", r"\n1,0.9"),
    ],
)
def test_a_damaged_record_in_the_cache_gives_no_wrong_number(repo, path, number, other):
    """DVC trusts what is read-only in its cache: https://github.com/treeverse/dvc/issues/5978."""
    content, count = re.subn(number, other, (repo.path / path).read_text(), count=1)
    assert count == 1
    if "history" in path:
        (repo.path / path).write_text(content)  # not in the cache
    else:
        damage_in_cache(repo, path, content.encode())
    before = repo.bytes_of("reports/*.*", "reports/figures/*")
    assert path in error(repo, "report")
    assert repo.bytes_of("reports/*.*", "reports/figures/*") == before


def test_a_cache_that_cannot_be_written(repo, reference):
    """Permissions do not bind root: there is a file where the cache's folder should be."""
    forget(repo, "prepare")
    cache = repo.path / ".dvc/cache"
    cache.rename(repo.path / "away")
    cache.write_text("")
    output = repo.dvc("repro", check=False)
    assert "ERROR: failed to reproduce 'prepare'" in output
    assert "Traceback" not in output
    cache.unlink()
    (repo.path / "away").rename(cache)
    assert stages_run(repo.dvc("repro")) == ["prepare"]
    assert repo.bytes_of(*RESULTS) == reference


@pytest.mark.parametrize("file", ["data/prepared/target.npz", "models/pretrain.keras"])
def test_an_output_truncated_by_hand_is_restored(repo, reference, file):
    os.truncate(repo.path / file, 1000)
    assert stages_run(repo.dvc("repro")) == []
    assert repo.bytes_of(*RESULTS) == reference


@pytest.mark.parametrize("file", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_a_half_written_file_of_dvcs_own_is_named_and_removing_it_heals(repo, reference, file):
    path = repo.path / file
    path.write_bytes(path.read_bytes()[:1])
    output = repo.dvc("repro", check=False)
    assert file in output
    assert stages_run(output) == []
    path.unlink()
    assert set(stages_run(repo.dvc("repro"))) <= {"report"}
    assert repo.bytes_of(*RESULTS) == reference
