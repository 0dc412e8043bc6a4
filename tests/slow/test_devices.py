"""Training on two devices, here two logical CPUs of this process, and the refusal of more than there are."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from stages import finetune, prepare, pretrain
from stages.shared.halves import read_half

pytestmark = pytest.mark.usefixtures("set_up")


def test_two_devices_give_the_curves_of_one(params, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune", "finetune_fc"])
    # Without dropout, which every device draws for itself.
    settings = params(**{"model.dropout": 0.0, "data.source_per_class": 19, "data.target_per_class": 19})
    prepare.main()
    assert len(read_half("source").train.y) % settings.pretrain.batch_size % 2  # the last batch has no equal shares
    # Made once: the reductions of a second strategy in one process, where a stage has one, mix with the first's.
    strategy = tf.distribute.MirroredStrategy([cpu.name for cpu in tf.config.list_logical_devices("CPU")])
    curves, used = {}, []
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: used.append(len(devices)) or strategy)
    for devices in (1, 2):
        params(devices=devices)
        pretrain.main()
        finetune.main()
        tables = [pd.read_csv(f"reports/history/{stage}.csv") for stage in ("pretrain", "finetune_fc")]
        curves[devices] = pd.concat(tables)[["loss", "val_loss"]]
    assert used == [2, 2]
    assert len(curves[1]) == settings.pretrain.epochs + settings.finetune_fc.epochs
    assert np.allclose(curves[2], curves[1], rtol=1e-3)


def test_more_devices_than_there_are_are_refused_in_one_line(params):
    params(devices=4)
    prepare.main()
    with pytest.raises(SystemExit, match=r"^error: params\.yaml: devices: was 4, expected at most 2: there is [^\n]*$"):
        pretrain.main()
    assert not Path("models/pretrain.keras").exists()
