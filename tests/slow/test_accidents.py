"""Damaged files, caches and settings: restored, or reported in one line; none gives a wrong number."""

import hashlib
import os
import re

import pytest

from repository import RESULTS, stages_run


def damage_in_cache(repo, path: str, content: bytes) -> None:
    """Change a file in DVC's cache and nothing else, as a failing disk does, and have DVC restore the file from it."""
    md5 = hashlib.md5((repo.path / path).read_bytes()).hexdigest()
    cached = repo.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    mode = cached.stat().st_mode
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(mode)
    (repo.path / path).unlink()
    assert stages_run(repo.dvc("repro", "pretrain")) == []
    assert (repo.path / path).read_bytes() == content


def test_a_damaged_model_in_the_cache_is_refused_and_trained_again(repo):
    before = repo.bytes_of(*RESULTS)
    content = bytearray(before["models/pretrain.keras"])
    content[len(content) // 2] ^= 4
    damage_in_cache(repo, "models/pretrain.keras", content)
    message = repo.stage_error("finetune_fc")
    assert "models/pretrain.keras" in message
    repo.run("sh", "-c", re.search("`(chmod [^`]*)`", message)[1])
    assert "pretrain" in stages_run(repo.dvc("repro"))
    assert repo.bytes_of(*RESULTS) == before


@pytest.mark.parametrize(
    ("name", "number", "other"),
    [
        ("record.json", rb'("test_loss": )', rb"\g<1>7"),
        ("predictions.csv", rb"\n(\w+),(?!\1,)(\w+),0\.", rb"\n\1,\2,0.99"),
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


def test_a_cache_that_cannot_be_written_is_reported_and_changes_no_number(repo):
    """Permissions do not bind root: a file is where the cache's folder should be."""
    before = repo.bytes_of(*RESULTS)
    cache, away = repo.path / ".dvc/cache", repo.path / "away"
    cache.rename(away)
    cache.write_text("")
    repo.edit("params.yaml", "seed: 1", "seed: 2")
    output = repo.dvc("repro", check=False)
    assert "ERROR: failed to reproduce 'prepare'" in output
    assert "Traceback" not in output
    cache.unlink()
    away.rename(cache)
    repo.edit("params.yaml", "seed: 2", "seed: 1")
    assert stages_run(repo.dvc("repro")) == []
    assert repo.bytes_of(*RESULTS) == before


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
