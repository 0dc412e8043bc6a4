"""What several test files need: a temporary workspace, settings with changes, a small dataset that can be learned."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cpuinfo
import numpy as np
import pytest
import yaml

from counting import counted
from repository import default_params
from stages import settings
from stages.settings import Settings

CLASS_NAMES = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
SUMS: Counter[str] = Counter()
TRAIN_PER_CLASS, TEST_PER_CLASS = 20, 10
TINY = {
    "threads": 1,
    "data.path": "data/raw/tiny.npz",
    "model.conv_filters": [4, 6],
    "model.dense_units": [12, 8],
    "model.rescale": True,
    "pretrain.epochs": 3,
    "pretrain.batch_size": 16,
    "finetune_output.epochs": 3,
    "finetune_output.batch_size": 16,
    "finetune_fc.epochs": 3,
    "finetune_fc.batch_size": 16,
}


@pytest.fixture(autouse=True)
def counts(record_property: Callable[[str, object], None]):
    """Hand on what a test counts with its report, which reaches the end from other processes, too."""
    counted.clear()
    yield
    for name, number in counted.items():
        record_property(name, number)


def pytest_collection_finish() -> None:
    """Set TensorFlow's threads, which cannot be changed once it runs, whichever test of this process is the first."""
    if tf := sys.modules.get("tensorflow"):
        tf.config.threading.set_intra_op_parallelism_threads(TINY["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(TINY["threads"])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, number in report.user_properties:
            SUMS[name] += number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, number in sorted(SUMS.items()):
        terminalreporter.write_line(f"{name}: {number}")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the default settings."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params(), sort_keys=False))
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


def tiny_arrays() -> dict[str, np.ndarray]:
    """Ten classes of 8x8x3 images, each a pattern of its own under noise, in mixed order."""
    rng = np.random.default_rng(7)
    patterns = rng.integers(40, 216, (len(CLASS_NAMES), 8, 8, 3))
    arrays = {"class_names": np.array(CLASS_NAMES)}
    for part, images in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        y = rng.permutation(np.repeat(np.arange(len(CLASS_NAMES)), images))
        noise = rng.normal(0, 50, (len(y), 8, 8, 3))
        arrays[f"x_{part}"] = np.clip(patterns[y] + noise, 0, 255).astype(np.uint8)
        arrays[f"y_{part}"] = y
    return arrays


@pytest.fixture
def tiny_dataset(workspace: Path) -> dict[str, np.ndarray]:
    """The arrays of data/raw/tiny.npz, which `TINY` names."""
    arrays = tiny_arrays()
    (workspace / "data/raw").mkdir(parents=True)
    np.savez(workspace / TINY["data.path"], **arrays)
    return arrays


@pytest.fixture
def tiny(params: Callable[..., Settings], tiny_dataset: dict) -> Settings:
    """Settings for a small network on the small dataset, in the workspace's params.yaml."""
    return params(**TINY)


@pytest.fixture(scope="session")
def cpu_info() -> dict:
    """Asked once, since each answer takes a second."""
    return cpuinfo.get_cpu_info()


@pytest.fixture
def set_up(tiny: Settings, cpu_info: dict, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """TensorFlow as the stages set it up, freshly seeded; may be called again for the same random numbers."""
    from stages import training  # not above: imported only where a test needs TensorFlow

    monkeypatch.setattr(training.cpuinfo, "get_cpu_info", lambda: cpu_info)
    training.set_up(tiny)
    return lambda: training.set_up(tiny)
