"""Stages that are killed in the middle of an epoch, as `dvc repro` runs them."""

import os
import random
import re
import signal
import time

from repository import REPRO, RESULTS, Repository, stages_run, tiny_params, wait_for

STAGES = ("pretrain", "finetune_fc")


def test_kills_in_the_middle_of_an_epoch_change_no_byte(tmp_path):
    params = tiny_params()
    params["data"] |= {"path": "data/raw/mnist.npz", "source_classes": [0, 1, 2, 3], "target_classes": [4, 5, 6, 7]}
    params["data"] |= {"source_per_class": 150, "target_per_class": 150}
    params["model"] |= {"conv_filters": [32, 64], "dense_units": [64]}
    params["finetune_fc"]["trainable"] = ["conv2", "fc1", "output"]
    for stage in STAGES:
        params[stage]["epochs"] = 9
    repo = Repository(tmp_path, params)
    for constant in ("INTERVAL = 1.0", "MAX_SHARE = 20"):  # a checkpoint after every epoch
        repo.edit("stages/training/checkpoint.py", constant, constant.partition(" ")[0] + " = 0")
    for stage in STAGES:
        for epoch in (2, 3, 4):
            process, log = repo.start(*REPRO, stage)
            wait_for(f"Epoch {epoch}/9", process, log)
            time.sleep(random.uniform(0, 0.5))  # an epoch takes up to one second
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() != 0
        assert {path.name for path in (repo.path / "models").iterdir()} <= {".gitignore", ".gitkeep", "pretrain.keras"}
        output = repo.dvc("repro", stage)
        assert stages_run(output) == [stage]
        assert re.search(f"{stage}: resuming after epoch [3-9]", output)
    resumed = repo.bytes_of(*RESULTS)
    assert not list(tmp_path.parent.glob("*/cache/*/trainings/*"))
    repo.dvc("repro", "--force", "finetune_fc")
    assert resumed == repo.bytes_of(*RESULTS)
