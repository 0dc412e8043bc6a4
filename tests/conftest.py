"""What several test files need: a temporary workspace, settings with changes, a small dataset that can be learned."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from counting import counted
from stages import settings
from stages.settings import Settings
from tiny import TINY, tiny_arrays

SUMS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def counts(record_property: Callable[[str, object], None]):
    """Hand on what a test counts with its report, which reaches the end from other processes, too."""
    counted.clear()
    yield
    for name, number in counted.items():
        record_property(name, number)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, number in report.user_properties:
            SUMS[name] += number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, number in sorted(SUMS.items()):
        terminalreporter.write_line(f"{name}: {number}")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with the default settings and the small files that they name."""
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/same.yaml").write_text("same: data.path\n")
    (tmp_path / "data/raw/random.yaml").write_text("weights: random\n")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(Settings().model_dump(), sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def params(workspace: Path) -> Callable[..., Settings]:
    """Change settings in the workspace's params.yaml and load it: ``params(**{"pretrain.epochs": 1})``."""

    def change(**changes) -> Settings:
        raw = yaml.safe_load(settings.PARAMS.read_text())
        for key, value in changes.items():
            *sections, leaf = key.split(".")
            section = raw
            for name in sections:
                section = section[name]
            section[leaf] = value
        settings.PARAMS.write_text(yaml.safe_dump(raw, sort_keys=False))
        return settings.load()

    return change


@pytest.fixture
def tiny_dataset(workspace: Path) -> dict[str, np.ndarray]:
    """The arrays of data/raw/tiny.npz, which `TINY` names."""
    arrays = tiny_arrays()
    np.savez(workspace / TINY["data.path"], **arrays)
    return arrays


@pytest.fixture
def tiny(params: Callable[..., Settings], tiny_dataset: dict) -> Settings:
    """Settings for a small network on the small dataset, in the workspace's params.yaml."""
    return params(**TINY)
