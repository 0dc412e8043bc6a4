"""Training on two devices, here two logical CPUs, and the refusals around it."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from repository import ROOT, tiny_arrays, tiny_params

STAGES = (["prepare"], ["pretrain"], ["finetune", "finetune_fc"])
RUN = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_module(f"stages.{sys.argv[0]}", run_name="__main__", alter_sys=False)
"""


def run(folder, cpus, stage):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", RUN, str(cpus), *stage]
    if stage == ["prepare"]:  # has no use for TensorFlow
        command = [sys.executable, "-m", "stages.prepare"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def workspace(folder, **settings):
    """A folder with tiny images, an odd number of them, and no dropout, which every device would draw for itself."""
    folder.mkdir()
    params = tiny_params()
    params["data"]["path"] = "tiny.npz"
    params["model"] |= {"dropout": 0.0, "rescale": True}
    params |= settings
    arrays = tiny_arrays()
    np.savez(folder / "tiny.npz", **{key: a[:-1] if key != "class_names" else a for key, a in arrays.items()})
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """The learning curves by number of devices and stage."""
    found = {}
    for devices in (1, 2):
        folder = workspace(tmp_path_factory.mktemp("devices") / "w", devices=devices)
        for stage in STAGES:
            result = run(folder, devices, stage)
            assert result.returncode == 0, result.stderr
        found[devices] = {s: pd.read_csv(folder / f"reports/history/{s}.csv") for s in ("pretrain", "finetune_fc")}
    return found


@pytest.mark.parametrize("stage", ["pretrain", "finetune_fc"])
def test_two_devices_give_the_curve_of_one(histories, stage):
    one, two = histories[1][stage], histories[2][stage]
    assert len(one) == 2
    np.testing.assert_allclose(two[["loss", "val_loss"]], one[["loss", "val_loss"]], rtol=1e-3)


def test_more_devices_than_there_are_is_refused(tmp_path):
    folder = workspace(tmp_path / "w", devices=4)
    assert run(folder, 1, ["prepare"]).returncode == 0
    result = run(folder, 1, ["pretrain"])
    assert result.returncode == 1
    assert "error: params.yaml: devices: was 4, expected at most 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_batch_that_devices_cannot_share_equally_is_refused(tmp_path):
    folder = workspace(tmp_path / "w", devices=3)
    result = run(folder, 1, ["prepare"])
    assert "pretrain.batch_size: was 16, expected a multiple of devices, 3" in result.stderr


def test_sixteen_bits_are_refused_for_raw_pixels(tmp_path):
    folder = workspace(tmp_path / "w", precision="mixed_bfloat16")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    assert run(folder, 1, ["prepare"]).returncode == 0
    params["model"]["rescale"] = False
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    assert "precision: was 'mixed_bfloat16', expected 'float32'" in run(folder, 1, ["prepare"]).stderr
