"""Damaged files, caches and settings: restored, or reported in one line; none gives a wrong number."""

import hashlib
import os
import re

from repository import RESULTS, ROOT, stages_run

MODEL = "models/pretrain.keras"
PAGE = (ROOT / "docs/guarantees.md").read_text()


def test_a_model_damaged_in_the_cache_is_refused_and_the_advised_commands_restore_it(repo):
    before = repo.bytes_of(*RESULTS)
    content = bytearray(before[MODEL])
    content[len(content) // 2] ^= 4
    md5 = hashlib.md5(before[MODEL]).hexdigest()
    cached = repo.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.unlink()
    repo.dvc("commit", "--force", "pretrain")  # DVC notes the time of the copy that it makes
    noted = cached.stat()
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(noted.st_mode)  # nothing but the content changes, as on a failing disk
    os.utime(cached, ns=(noted.st_atime_ns, noted.st_mtime_ns))
    (repo.path / MODEL).unlink()
    assert stages_run(repo.dvc("repro", "pretrain")) == []  # DVC trusts write-protected files in its cache
    assert (repo.path / MODEL).read_bytes() == content
    message = repo.stage_error("finetune_fc")
    assert f"{MODEL}: " in message
    assert "delete it" in message
    (repo.path / MODEL).unlink()
    commands = re.findall("`([^`]*)`", message)
    assert all(f"`{command}`" in PAGE for command in commands)
    output = repo.run("sh", "-c", " && ".join(commands))
    assert "pretrain" in stages_run(output)
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
