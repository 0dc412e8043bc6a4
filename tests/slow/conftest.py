"""What several tests with TensorFlow need."""

import os
from pathlib import Path

import cpuinfo
import pytest

from stages.settings import Settings
from tiny import TINY

os.environ["KERAS_BACKEND"] = "tensorflow"  # tests import Keras before the stages do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the two longest files, so that all workers end together."""
    items.sort(key=lambda item: item.path.name not in ("test_readme.py", "test_studies.py"))


def pytest_collection_finish() -> None:
    """Set TensorFlow's threads and devices, which cannot be changed once it runs, whichever test is the first."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(TINY["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(TINY["threads"])
    tf.config.set_visible_devices([], "GPU")
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2  # for test_devices.py; all other tests stay on the first
    tf.config.set_logical_device_configuration(cpu, two)


@pytest.fixture(scope="session")
def cpu_info() -> dict:
    """Asked once, since each answer takes a second."""
    return cpuinfo.get_cpu_info()


@pytest.fixture
def set_up(tiny: Settings, cpu_info: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorFlow as the stages set it up, freshly seeded, and no interrupted training kept from another test."""
    from stages.training import checkpoint, loop, record

    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path / "trainings")

    monkeypatch.setattr(record.cpuinfo, "get_cpu_info", lambda: cpu_info)
    loop.set_up(tiny)
