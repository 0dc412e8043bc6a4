"""Kills, full disks, two runs at once, damaged files: each heals or says what is wrong, none gives a wrong number.

`benchmarks/kills.py` kills at many more moments.
"""

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
from repository import ROOT, stages_run

sys.path.insert(0, str(ROOT / "benchmarks"))
import kills

COMMANDS = {
    name: stage["cmd"].removeprefix("exec python -m ").split()
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A repository whose pipeline has run once, a copy of its folder, and its results."""
    path = tmp_path_factory.mktemp("accidents") / "repository"
    path.mkdir()
    repo = kills.KilledRepository(path)
    assert repo.repro().code == 0
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    return repo, copy, repo.results()


@pytest.fixture
def repo(first_run):
    """The repository as the first run left it."""
    repo, copy, _ = first_run
    shutil.rmtree(repo.path)
    shutil.copytree(copy, repo.path)
    return repo


@pytest.fixture
def reference(first_run):
    """The results of the first run."""
    return first_run[2]


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
    (md5,) = [out["md5"] for outs in repo.recorded().values() for out in outs if out["path"] == path]
    cached = repo.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    mode = cached.stat().st_mode
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(mode)
    (repo.path / path).unlink()
    assert stages_run(repo.dvc("repro", "pretrain")) == []


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def test_kills_in_the_middle_of_a_write_and_ctrl_c_and_a_full_disk(repo, reference):
    repo.forget()
    planned = [
        {"write": "half data/prepared/target.npz"},
        {"until": "Epoch 1/", "seconds": 0, "number": signal.SIGINT},
        {"write": "half models/finetune_output.keras"},
        {"write": "full reports/figures/per_class.png"},
    ]
    result = repo.round(reference, planned)
    assert result.wrong == []
    counted["kills survived"] = len(result.kills)
    assert result.by_hand == []
    assert [stages_run(run.output) for run in result.runs] == [
        ["prepare"],
        ["prepare", "pretrain"],
        ["pretrain", "finetune_output"],
        ["finetune_output", "finetune_fc", "report"],
        ["report"],
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process can be tied to the one that started it")
@pytest.mark.parametrize("shell", ["/bin/sh", shutil.which("bash")])
def test_a_stage_whose_dvc_was_killed_writes_no_output(repo, shell):
    """It would write among those of the next `dvc repro`."""
    repo.forget("pretrain")
    process = repo.start(SHELL=shell)
    while "Epoch 1/" not in repo.log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while kills.alive(process.pid):
        time.sleep(0.05)
    assert repo.bytes_of("models/pretrain.keras") == {}


@pytest.mark.parametrize("file", ["dvc.lock", ".dvc/tmp/rwlock"])
def test_a_half_written_file_of_dvcs_own_is_named_and_removing_it_heals(repo, reference, file):
    """DVC does not write them whole or not at all; no stage can help that."""
    path = repo.path / file
    path.write_bytes(path.read_bytes()[:1])
    output = repo.dvc("repro", check=False)
    assert file in output
    assert stages_run(output) == []
    result = repo.round(reference, [])
    assert result.by_hand == [file]
    assert result.wrong == []


def test_a_half_made_entry_of_dvcs_run_cache(repo, reference):
    """DVC was killed between making the entry's folder and moving the entry there."""
    (entry,) = [path for path in repo.path.glob(".dvc/cache/runs/*/*/*") if "stages.prepare" in path.read_text()]
    repo.forget("prepare")
    entry.parent.mkdir(parents=True)
    assert repo.round(reference, []).wrong == []


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("prepare", 0),
        ("prepare", 1_000),
        ("pretrain", 0),
        ("pretrain", 1_000),
        ("finetune_output", 100),
        ("finetune_fc", 20_000),
        ("report", 0),
        ("report", 2_000),
    ],
)
def test_full_disk(repo, reference, name, size):
    """Emulated by a largest size of files."""
    before = repo.bytes_of(*repo.outputs[name])
    for path in before:
        (repo.path / path).unlink()
    limit = (size, size)
    error(stage(repo, name, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    changed = {path for path, content in repo.bytes_of(*repo.outputs[name]).items() if content != before[path]}
    assert changed <= {f"reports/history/{name}.csv"}  # which grows by epochs, to be watched
    assert repo.round(reference, []).wrong == []


def test_two_at_once(repo, reference):
    repo.forget("prepare")
    first, first_log = repo.start(), repo.log
    repo.log = first_log.with_name("second output")
    second, second_log = repo.start(), repo.log
    codes = [first.wait(), second.wait()]
    assert 0 in codes
    output = first_log.read_text() + second_log.read_text()
    assert codes == [0, 0] or "is busy, it is being blocked by" in output or "Unable to acquire lock" in output
    assert repo.wrongly_recorded() == []
    assert repo.results() == reference


@pytest.mark.parametrize("python", ["this", "3.13"])
def test_no_flipped_bit_of_a_model_is_loaded(repo, monkeypatch, python):
    from stages import network  # not above: imports TensorFlow
    from stages.settings import UserError

    if python == "3.13":  # compares no checksum of a file in a zip once another place in it was sought
        seek = zipfile.ZipExtFile.seek

        def seek_unchecked(file, *arguments):
            file._expected_crc = None
            return seek(file, *arguments)

        monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek_unchecked)
    path = repo.path / "models/pretrain.keras"
    content, weights = path.read_bytes(), network.load(path).get_weights()
    places = random.Random(0).sample(range(len(content)), 20)
    for kernel in (weights[0], weights[-2]):
        start = content.index(kernel.tobytes())
        places += range(start, start + kernel.nbytes, 37)
    for place in places:
        path.write_bytes(flipped(content, place))
        try:
            loaded = network.load(path).get_weights()
        except UserError:
            continue
        assert all(np.array_equal(*pair) for pair in zip(weights, loaded, strict=True)), f"byte {place}"


def test_a_damaged_model_in_the_cache_is_refused_and_made_anew(repo, reference):
    content = (repo.path / "models/pretrain.keras").read_bytes()
    damage_in_cache(repo, "models/pretrain.keras", flipped(content, len(content) // 2))
    assert "models/pretrain.keras" in error(stage(repo, "finetune_fc"))
    repo.run("chmod", "-R", "u+w", ".dvc/cache/files")  # DVC checks only what may be written
    assert "pretrain" in stages_run(repo.dvc("repro"))
    assert repo.results() == reference


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
    damage_in_cache(repo, path, content.encode())
    before = repo.bytes_of("reports/*.*", "reports/figures/*")
    result = stage(repo, "report")
    assert repo.bytes_of("reports/*.*", "reports/figures/*") == before
    assert path in error(result)


def test_a_cache_that_cannot_be_written(repo, reference):
    """Permissions do not bind root: there is a file where the cache's folder should be."""
    repo.forget("prepare")
    cache = repo.path / ".dvc/cache"
    cache.rename(repo.path / "away")
    cache.write_text("")
    output = repo.dvc("repro", check=False)
    assert "ERROR: failed to reproduce 'prepare'" in output
    assert "Traceback" not in output
    cache.unlink()
    (repo.path / "away").rename(cache)
    assert repo.round(reference, []).wrong == []


def test_a_prepared_file_changed_by_hand_is_restored(repo, reference):
    path = repo.path / "data/prepared/target.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"y_train": 1 - arrays["y_train"]})
    assert stages_run(repo.dvc("repro")) == []
    assert repo.results() == reference


def test_a_truncated_model_is_restored(repo, reference):
    os.truncate(repo.path / "models/pretrain.keras", 1000)
    assert stages_run(repo.dvc("repro", "finetune_fc")) == []
    assert repo.results() == reference


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
    assert repo.results() == reference
