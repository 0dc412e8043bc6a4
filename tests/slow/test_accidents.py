"""Damaged files, caches and settings: restored, or reported in one line; none gives a wrong number."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from repository import RESULTS, ROOT, stages_run

MODEL = "models/pretrain.keras"
PAGE = (ROOT / "docs/guarantees.md").read_text()


def damage(file: Path, content: bytes) -> None:
    """Change a file's content and nothing else, as a failing disk does."""
    before = file.stat()
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def damage_in_cache(repo, path: str, content: bytes) -> None:
    """Damage a file in DVC's cache, and have DVC restore the file from it."""
    md5 = hashlib.md5((repo.path / path).read_bytes()).hexdigest()
    cached = repo.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.unlink()
    repo.dvc("commit", "--force", "pretrain")  # DVC notes the time of the copy that it makes
    damage(cached, content)
    (repo.path / path).unlink()
    assert stages_run(repo.dvc("repro", "pretrain")) == []
    assert (repo.path / path).read_bytes() == content


@pytest.mark.parametrize("in_cache", [False, True])
def test_a_damaged_model_is_refused_and_the_advised_commands_restore_it(repo, in_cache):
    before = repo.bytes_of(*RESULTS)
    content = bytearray(before["models/pretrain.keras"])
    content[len(content) // 2] ^= 4
    repo.dvc("status")  # DVC notes the time of each file
    damage_in_cache(repo, MODEL, content) if in_cache else damage(repo.path / MODEL, content)
    message = repo.stage_error("finetune_fc")
    assert f"{MODEL}: " in message
    assert "delete it" in message
    (repo.path / MODEL).unlink()
    commands = re.findall("`([^`]*)`", message)
    assert all(f"`{command}`" in PAGE for command in commands)
    output = repo.run("sh", "-c", " && ".join(commands))
    assert ("pretrain" in stages_run(output)) == in_cache
    assert repo.bytes_of(*RESULTS) == before


@pytest.mark.parametrize(
    ("name", "number", "other"),
    [
        ("record.json", rb'("test_loss": )', rb"\g<1>7"),
        ("predictions.csv", rb"\n(\S+),(\w+),(?!\2,)(\w+),0\.", rb"\n\1,\2,\3,0.99"),
        ("history.csv", rb"\n1,0\.", rb"\n1,0.9"),
        ("gradcam.npz", rb"....$", b"abcd"),
    ],
)
def test_a_damaged_record_in_the_cache_gives_no_wrong_number(repo, name, number, other):
    """DVC trusts write-protected files in its cache: https://github.com/treeverse/dvc/issues/5978."""
    path = f"reports/pretrain/{name}"
    content, count = re.subn(number, other, (repo.path / path).read_bytes(), count=1, flags=re.DOTALL)
    assert count == 1
    damage_in_cache(repo, path, content)
    before = repo.bytes_of("reports/*.*", "reports/figures/*")
    assert path in repo.stage_error("report")
    assert repo.bytes_of("reports/*.*", "reports/figures/*") == before


def test_truncated_outputs_are_restored_and_removing_a_half_written_file_of_dvc_heals(repo):
    before = repo.bytes_of(*RESULTS)
    for file in ("data/prepared/target.npz", "models/pretrain.keras", "reports/pretrain/history.csv"):
        os.truncate(repo.path / file, 50)
    assert stages_run(repo.dvc("repro")) == []
    for file in ("dvc.lock", ".dvc/tmp/rwlock"):
        os.truncate(repo.path / file, 1)
        assert file in repo.dvc("repro", check=False)
        (repo.path / file).unlink()
        assert set(stages_run(repo.dvc("repro"))) <= {"report"}
    assert repo.bytes_of(*RESULTS) == before
