"""The benchmarks start in any folder; what they measure is not asserted."""

import subprocess
import sys

import pytest

from repository import ROOT

SCRIPTS = sorted(ROOT.glob("benchmarks/*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_starts_in_any_folder(path, tmp_path):
    command = [sys.executable, str(path), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {path.name}")
