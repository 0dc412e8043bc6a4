"""Kills, full disks, two runs at once, damaged files: each heals or says what is wrong, none gives a wrong number.

`benchmarks/kills.py` kills at many more moments.
"""

import hashlib
import json
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
from repository import ROOT, Repository, outputs, stages_run

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
COMMANDS = {name: stage["cmd"].removeprefix("exec python -m ").split() for name, stage in STAGES.items()}
RESULTS = ("data/prepared/*.npz", "models/*.keras", "reports/history/*", "reports/predictions/*", "reports/record/*")
RESULTS += ("reports/figures/*",)
DIE = """
import os, pathlib, signal
write = pathlib.Path.write_bytes
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
    return repo, copy, results(repo)


@pytest.fixture
def repo(first_run):
    """The repository as the first run left it."""
    repo, copy, _ = first_run
    shutil.rmtree(repo.path)
    shutil.copytree(copy, repo.path)
    return repo


@pytest.fixture
def reference(first_run):
    return first_run[2]


def results(repo) -> dict[str, bytes]:
    """All that the pipeline makes, without times."""
    metrics = json.loads((repo.path / "reports/metrics.json").read_text())
    untimed = {stage: {k: v for k, v in of.items() if k != "train_seconds"} for stage, of in metrics.items()}
    return repo.bytes_of(*RESULTS) | {"metrics": json.dumps(untimed).encode()}


def start(repo, log, **environment: str) -> subprocess.Popen:
    """Start `dvc repro` in a process group of its own; what it prints goes to `log`."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"], cwd=repo.path, env=repo.environment | environment,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and passes that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def wait_for(text: str, log, process) -> None:
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def forget(repo, *stages: str) -> None:
    """Make it as if some stages had never run."""
    for path in (repo.path / name for stage in stages for name in outputs(STAGES[stage])):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(repo.path / ".dvc/cache/runs")
    recorded = yaml.safe_load((repo.path / "dvc.lock").read_text())
    recorded["stages"] = {name: entry for name, entry in recorded["stages"].items() if name not in stages}
    (repo.path / "dvc.lock").write_text(yaml.safe_dump(recorded))


def stage(repo, name, **options) -> subprocess.CompletedProcess:
    """Run one stage without DVC."""
    return subprocess.run(
        [sys.executable, "-m", *COMMANDS[name]], cwd=repo.path, env=repo.environment, text=True,
        capture_output=True, timeout=300, check=False, **options,
    )  # fmt: skip


def error(result: subprocess.CompletedProcess) -> str:
    """The one line with which a stage ended."""
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


def test_kills_in_the_middle_of_a_write_and_ctrl_c(repo, reference, tmp_path):
    forget(repo, *STAGES)
    log, ran = tmp_path / "log", []
    for name in ("target.npz", "finetune_output.keras", "report.md"):
        process = start(repo, log, DIE_WRITING=name)
        assert process.wait() != 0
        assert repo.bytes_of(f"data/prepared/{name}", f"models/{name}", f"reports/{name}") == {}
        ran.append(stages_run(log.read_text()))
        counted["kills survived"] += 1
    assert ran == [
        ["prepare"],
        ["prepare", "pretrain", "finetune_output"],
        ["finetune_output", "finetune_fc", "report"],
    ]
    assert stages_run(repo.dvc("repro")) == ["report"]
    assert results(repo) == reference
    forget(repo, *STAGES)
    process = start(repo, log)
    wait_for("Epoch 1/", log, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() != 0
    counted["kills survived"] += 1
    assert stages_run(repo.dvc("repro")) == list(STAGES)[1:]
    assert results(repo) == reference


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process can be tied to the one that started it")
def test_a_stage_whose_dvc_was_killed_writes_no_output(repo, tmp_path):
    """It would write among those of the next `dvc repro`."""
    forget(repo, "pretrain")
    process = start(repo, tmp_path / "log")
    wait_for("Epoch 1/", tmp_path / "log", process)
    process.kill()
    process.wait()
    time.sleep(3)  # a training of two tiny epochs would have ended
    assert repo.bytes_of("models/pretrain.keras") == {}


@pytest.mark.parametrize("file", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_a_half_written_file_of_dvcs_own_is_named_and_removing_it_heals(repo, reference, file):
    """DVC does not write them whole or not at all; no stage can help that."""
    path = repo.path / file
    path.write_bytes(path.read_bytes()[:1])
    output = repo.dvc("repro", check=False)
    assert file in output
    assert stages_run(output) == []
    path.unlink()
    assert set(stages_run(repo.dvc("repro"))) <= {"report"}
    assert results(repo) == reference


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
    error(stage(repo, name, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    after = repo.bytes_of(*written)
    assert {path for path, content in after.items() if path.endswith(".keras") and content != before[path]} == set()
    assert all(len(content) <= size for content in after.values())  # what is there is whole
    repo.dvc("repro")
    assert results(repo) == reference


def test_two_at_once(repo, reference, tmp_path):
    forget(repo, "prepare")
    logs = [tmp_path / "first", tmp_path / "second"]
    codes = [process.wait() for process in [start(repo, log) for log in logs]]
    output = "".join(log.read_text() for log in logs)
    assert 0 in codes
    assert codes == [0, 0] or "is busy, it is being blocked by" in output or "Unable to acquire lock" in output
    assert results(repo) == reference


@pytest.mark.parametrize("python", ["this", "3.13"])
def test_no_flipped_bit_of_a_model_is_loaded(repo, monkeypatch, python):
    from stages.shared.errors import UserError
    from stages.training import model_files  # not above: imports TensorFlow

    if python == "3.13":  # compares no checksum of a file in a zip once another place in it was sought
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
    assert "models/pretrain.keras" in error(stage(repo, "finetune_fc"))
    repo.run("chmod", "-R", "u+w", ".dvc/cache/files")  # DVC checks only what may be written
    assert "pretrain" in stages_run(repo.dvc("repro"))
    assert results(repo) == reference


@pytest.mark.parametrize(
    ("path", "number", "other"),
    [
        ("reports/record/pretrain.json", r'("test_loss": )', r"\g<1>7"),
        ("reports/predictions/pretrain.csv", r"\n(\w+),(?!\1,)(\w+),0\.", r"\n\1,\2,0.99"),
        ("reports/history/pretrain.csv", r"\n1,0\.", r"\n1,0.9"),
    ],
    ids=["record", "predictions", "history"],
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
    result = stage(repo, "report")
    assert repo.bytes_of("reports/*.*", "reports/figures/*") == before
    assert path in error(result)


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
    assert results(repo) == reference


@pytest.mark.parametrize("file", ["data/prepared/target.npz", "models/pretrain.keras"])
def test_an_output_truncated_by_hand_is_restored(repo, reference, file):
    os.truncate(repo.path / file, 1000)
    assert stages_run(repo.dvc("repro")) == []
    assert results(repo) == reference


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "data.path"), (b"", "data.path"), (b"seed: [1", "params.yaml"), (b"\xff\xfe", "params.yaml")],
    ids=["missing", "empty", "no YAML", "no text"],
)
def test_params_that_cannot_be_read(repo, reference, content, named):
    path = repo.path / "params.yaml"
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert "params.yaml" in error(stage(repo, "prepare"))
    output = repo.dvc("repro", check=False)
    assert named in output  # in DVC's words, as DVC reads it first
    assert "Traceback" not in output
    assert stages_run(output) == []
    path.write_bytes(kept)
    assert results(repo) == reference
