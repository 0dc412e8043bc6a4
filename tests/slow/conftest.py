"""Fixtures of tests that run TensorFlow in this process."""

import sys
from collections.abc import Sequence

import pytest
import tensorflow as tf

from stages import finetune, prepare, pretrain, report
from stages.settings import Settings
from stages.shared.tasks import Task, read_task
from stages.training import checkpoint
from stages.training.fit import fit
from stages.training.freeze import freeze_except
from stages.training.model import build_model
from stages.training.runtime import configure
from tiny import TINY


def pytest_collection_finish() -> None:
    """Set TensorFlow's threads and device, which cannot change once it runs, whichever test comes first."""
    tf.config.threading.set_intra_op_parallelism_threads(TINY["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(TINY["threads"])
    tf.config.set_visible_devices([], "GPU")


@pytest.fixture
def configured(tiny, monkeypatch, tmp_path):
    """Configure TensorFlow as the stages do, without checkpoints of other tests."""
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path / "trainings")
    configure(tiny)


@pytest.fixture
def run(configured, monkeypatch):
    """Run stages in this process: ``run("prepare", "pretrain", "finetune_fc")``."""
    programs = {"prepare": prepare.main, "pretrain": pretrain.main, "report": report.main}

    def run(*stages: str) -> None:
        for stage in stages:
            monkeypatch.setattr(sys, "argv", [stage] if stage in programs else ["finetune", stage])
            programs.get(stage, finetune.main)()

    return run


@pytest.fixture
def tasks(run):
    """Prepare the tiny dataset; return its tasks by side."""
    run("prepare")
    return {"source": read_task("source"), "target": read_task("target")}


@pytest.fixture
def train(configured):
    """Build a network, freeze all layers but the named ones, and train it by the recipe of `pretrain`."""

    def train(settings: Settings, task: Task, trainable: Sequence[str] = ()):
        configure(settings)
        model = build_model(task.train.x.shape[1:], len(task.class_names), settings.model, task.train.x)
        freeze_except(model, list(trainable) or settings.model.layer_names)
        return model, fit(model, task, settings.pretrain, "pretrain", settings)

    return train
