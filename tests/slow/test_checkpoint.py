"""Interrupted training resumes where it was, and ends with the bytes of an undisturbed one."""

import os
import platform
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.shared.files import MODELS, read_json, stage_folder, timing_file
from stages.shared.tasks import read_task
from stages.training import checkpoint, model_files, runtime
from stages.training.checkpoint import Checkpoint
from stages.training.model import build_model
from stages.training.runtime import configure

EVERYTHING = {
    "data.validation_fraction": 0.25,
    "pretrain.epochs": 12,
    "pretrain.augment": ["flip", "shift", "contrast", "colour", "erasing", "rand_augment", "mixup", "cutmix"],
    "pretrain.label_smoothing": 0.1,
    "pretrain.base_learning_rate": 0.5,
    "pretrain.weight_decay": 0.001,
    "pretrain.clip_norm": 5.0,
    "pretrain.monitor": "val_accuracy",
    "pretrain.class_weight": "balanced",
    "pretrain.optimizer": "adam",
    "pretrain.schedule": "cosine",
    "pretrain.learning_rate": 0.15,
    "pretrain.patience": 4,
}
CACHED = {"precision": "mixed_float16", "pretrain.epochs": 0, "finetune_fc.epochs": 9}


@pytest.fixture(autouse=True)
def checkpoint_after_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL", 0)
    monkeypatch.setattr(checkpoint, "MAX_SHARE", 0)


@pytest.fixture
def interrupt(run, monkeypatch):
    """Interrupt a stage in an epoch, counted from 1, or before it saves its outputs; return the checkpoint left."""

    def interrupt(stage: str, epoch: int | None) -> Path:
        def stop(self, *_, **__):
            if epoch is None or len(self.curves) + 1 == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(*((Checkpoint, "on_train_batch_end") if epoch else (model_files, "save")), stop)
            run(stage)
        (left,) = checkpoint.FOLDER.glob("*/*")
        return left

    return interrupt


def outputs(stage: str) -> dict[str, bytes]:
    """Read all that a stage writes, its time apart."""
    files = [MODELS / f"{stage}.keras", *stage_folder(stage).iterdir()]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(("stage", "changes", "epochs"), [("pretrain", EVERYTHING, 5), ("finetune_fc", CACHED, 9)])
def test_interrupted_stage_ends_with_the_bytes_of_an_undisturbed_one(
    params, run, interrupt, capsys, stage, changes, epochs
):
    params(**changes)
    run(*dict.fromkeys(["prepare", "pretrain", stage]))
    undisturbed, seconds = outputs(stage), read_json(timing_file(stage))["train_seconds"]
    history = undisturbed["history.csv"].decode()
    assert history.count("\n") == 1 + epochs
    assert ("kept" in history) == (stage == "pretrain")  # stopped early
    left = interrupt(stage, 3)
    np.savez(left, **(dict(np.load(left)) | {"seconds": 1000.0}))
    assert interrupt(stage, None) == left
    run(stage)
    resumed = re.findall(rf"{stage}: resuming after epoch (\d)\n", capsys.readouterr().out)
    assert resumed == ["2", "4" if stage == "pretrain" else "9"]  # no checkpoint after the epoch that stops it
    assert outputs(stage) == undisturbed
    assert seconds < 1000 < read_json(timing_file(stage))["train_seconds"]
    assert list(checkpoint.FOLDER.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "reshaped"])
def test_damaged_checkpoint_is_not_resumed(tiny, tasks, train, capsys, damage):
    model, _ = train(tiny, tasks["source"])
    (left,) = checkpoint.FOLDER.glob("*/*")  # a stage deletes it once its outputs are saved
    arrays = dict(np.load(left))
    if damage == "truncated":
        left.write_bytes(left.read_bytes()[:-100])
    else:
        np.savez(left, **(arrays | {"variable0": arrays["variable0"][..., :1]}))
    again, _ = train(tiny, tasks["source"])
    assert "resuming" not in capsys.readouterr().out
    assert all(map(np.array_equal, model.get_weights(), again.get_weights()))


def test_checkpoint_of_another_setting_image_or_kernel_is_not_resumed(params, tasks, monkeypatch):
    def path(task=tasks["source"], **changes):
        before = params().by_key()
        settings = params(**changes)
        params(**{key: before[key] for key in changes})
        configure(settings)
        model = build_model((8, 8, 3), 5, settings.model, task.train.x)
        return Checkpoint("pretrain", model, task, settings.pretrain, cached=False).path

    changes = {"model.dropout": 0.3, "pretrain.batch_size": 8, "seed": 2, "pretrain.epochs": 4}
    other = np.array(read_task("source").test.x)
    other[0, 0, 0, 0] ^= 1
    changed_image = replace(tasks["source"], test=replace(tasks["source"].test, x=other))
    paths = [path(), path(changed_image), *(path(**{key: value}) for key, value in changes.items())]
    monkeypatch.setattr(platform, "node", lambda: "another host")
    assert path() == paths[0]
    for name in ("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            paths.append(path())
            assert runtime.describe_environment()[name] == "0"
    monkeypatch.setattr(runtime, "cpu", lambda: ("another CPU", "x86_64"))
    assert len({*paths, path()}) == len(paths) + 1


def test_only_expired_checkpoints_are_deleted_with_ones_own(tmp_path, configured):
    expired, link, fresh = (checkpoint.FOLDER / (name * 32) for name in ("ab", "cd", "ef"))
    elsewhere, foreign = tmp_path / "elsewhere", checkpoint.FOLDER / "notes"
    for folder in (expired, fresh, foreign, elsewhere):
        folder.mkdir(parents=True)
    link.symlink_to(elsewhere)
    for folder in (expired, foreign, elsewhere):
        os.utime(folder, (0, 0))
    Checkpoint.delete(SimpleNamespace(path=checkpoint.FOLDER / "own/state.npz"))
    assert set(checkpoint.FOLDER.iterdir()) == {link, fresh, foreign}
    assert elsewhere.exists()
