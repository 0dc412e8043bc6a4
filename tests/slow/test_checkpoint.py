"""A training that is interrupted goes on where it was, and ends with the bytes of an undisturbed one."""

import os
import random
import re
import signal
import time
from dataclasses import replace

import keras
import numpy as np
import pytest

from counting import counted
from repository import REPRO, RESULTS, Repository, stages_run, tiny_params, wait_for
from stages import prepare
from stages.shared.files import MODELS
from stages.shared.halves import Part, read_half
from stages.training import checkpoint, loop, network

EVERYTHING = {
    "data.validation_fraction": 0.25,
    "pretrain.epochs": 12,
    "pretrain.augment": ["flip", "shift", "contrast"],
    "pretrain.class_weight": "balanced",
    "pretrain.optimizer": "adam",
    "pretrain.schedule": "cosine",
    "pretrain.learning_rate": 0.15,
    "pretrain.patience": 2,
}


class Interrupt(keras.callbacks.Callback):
    """Ends a training in the middle of an epoch, counted from 1."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture
def train(set_up, monkeypatch):
    """Train on the prepared source; returns curves, weights and seconds, or what was kept when it was interrupted."""
    fit = keras.Sequential.fit
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    monkeypatch.setattr(checkpoint, "SHARE", 0)
    MODELS.mkdir()

    def run(settings, trainable=None, until=None, half=None):
        end = Interrupt(until) if until else keras.callbacks.Callback()
        patched = lambda *given, callbacks, **named: fit(*given, callbacks=[*callbacks, end], **named)  # noqa: E731
        monkeypatch.setattr(keras.Sequential, "fit", patched)
        loop.set_up(settings)
        half = half or read_half("source")
        model = network.build(half.train.x.shape[1:], len(half.class_names), settings.model, half.train.x)
        network.freeze_all_but(model, trainable or settings.model.layers_with_weights)
        try:
            history, seconds, kept = loop.fit(model, half, settings.pretrain, "pretrain", settings)
        except KeyboardInterrupt:
            return next(checkpoint.FOLDER.glob("*/*"))
        assert kept.path.exists()  # writing results may be interrupted, too
        kept.remove()
        assert not kept.path.parent.exists()
        return history, model.get_weights(), seconds

    return run


def equal(first, second) -> bool:
    return first[0].equals(second[0]) and all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize(
    ("changes", "trainable"),
    [({}, None), (EVERYTHING, None), ({"precision": "mixed_float16"}, ["fc2", "output"])],
)
def test_an_interrupted_training_ends_like_an_undisturbed_one(params, tiny, train, capsys, changes, trainable):
    settings = params(**{"pretrain.epochs": 9} | changes)
    prepare.main()
    whole = train(settings, trainable)
    assert ("kept" in whole[0]) == (len(whole[0]) == 5) == (changes is EVERYTHING)  # stops early
    kept = train(settings, trainable, until=3)
    np.savez(kept, **(dict(np.load(kept)) | {"seconds": 1000.0}))
    assert train(settings, trainable, until=5) == kept
    resumed = train(settings, trainable)
    assert re.findall(r"goes on after epoch (\d)", capsys.readouterr().out) == ["2", "4"]
    assert equal(resumed, whole)
    assert whole[2] < 1000 < resumed[2]


def test_a_changed_setting_or_image_and_a_damaged_file_start_anew(params, tiny, train, capsys):
    prepare.main()
    whole, half = train(tiny), read_half("source")
    kept = train(tiny, until=3)
    for key, value in {"model.dropout": 0.3, "pretrain.batch_size": 8, "seed": 2, "pretrain.epochs": 4}.items():
        train(params(**{key: value}))
        params(**{key: tiny.by_key()[key]})
    other = half.test.x.copy()
    other[0, 0, 0, 0] ^= 1
    train(tiny, half=replace(half, test=Part(other, half.test.y)))
    kept.write_bytes(kept.read_bytes()[:-100])
    assert equal(train(tiny), whole)
    assert "goes on" not in capsys.readouterr().out


def test_kills_in_the_middle_of_an_epoch_change_no_byte(tmp_path):
    params = tiny_params()
    params["data"] |= {"path": "data/raw/digits.npz", "source_classes": [0, 1, 2, 3], "target_classes": [4, 5, 6, 7]}
    params["model"] |= {"conv_filters": [32, 64], "dense_units": [64]}
    params["finetune_fc"]["trainable"] = ["conv2", "fc1", "output"]
    params["feature_memory"] = 0  # a temporary file
    stages = ("pretrain", "finetune_fc")
    for stage in stages:
        params[stage]["epochs"] = 9
    repo = Repository(tmp_path, params).with_processes_of_its_own()
    code = repo.path / "stages/training/checkpoint.py"
    code.write_text(re.sub(r"\n(EVERY|SHARE) = [\d.]+", r"\n\1 = 0", code.read_text()))
    for stage in stages:
        for epoch in (2, 3, 4):
            process, log = repo.start(*REPRO, stage)
            wait_for(f"Epoch {epoch}/9", process, log)
            time.sleep(random.uniform(0, 0.5))  # an epoch takes up to one second
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() != 0
            counted["kills survived"] += 1
        assert {path.name for path in (repo.path / "models").iterdir()} <= {".gitignore", ".gitkeep", "pretrain.keras"}
        output = repo.dvc("repro", stage)
        assert stages_run(output) == [stage]
        assert re.search(f"{stage}: goes on after epoch [3-9], where it was interrupted", output)
    resumed = repo.bytes_of(*RESULTS)
    assert not list(tmp_path.parent.glob("*/cache/*/trainings/*"))
    repo.dvc("repro", "--force", "finetune_fc")
    assert resumed == repo.bytes_of(*RESULTS)
