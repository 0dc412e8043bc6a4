"""Training: feature cache, early stopping, class weights, schedule, augmentation, order of images."""

import mmap
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from repository import ROOT
from stages.settings import Recipe
from stages.shared.files import MODELS
from stages.shared.tasks import read_task
from stages.training import augment, feature_cache, input_pipeline
from stages.training.evaluate import log_probabilities
from stages.training.input_pipeline import ShuffleOrder, make_dataset
from stages.training.optimizer import make_optimizer
from stages.training.runtime import configure

pytestmark = pytest.mark.usefixtures("configured")


def losses(model, split):
    """Compute the cross-entropy of each image."""
    return -log_probabilities(model, split.x)[np.arange(len(split.y)), split.y]


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("mixed_bfloat16", 2)])
def test_training_on_cached_features_gives_the_same_model(
    params, tasks, train, monkeypatch, capsys, precision, bytes_each
):
    monkeypatch.setattr(input_pipeline, "EVALUATION_BATCH", 7)  # the last batch has fewer images
    cached, compute = [], feature_cache.compute
    monkeypatch.setattr(feature_cache, "compute", lambda *given: cached.append(compute(*given)) or cached[-1])
    curves, weights = [], []
    for memory, message in (
        (2**30, "pretrain: caching features of 150 images (0 MB)\n"),
        (1, "pretrain: computing features of 150 images (0 MB) in every epoch, which is slow: "),
    ):
        monkeypatch.setattr(feature_cache, "memory_limit", lambda memory=memory: memory)
        model, history = train(params(precision=precision), tasks["target"], ["fc2", "output"])
        output = capsys.readouterr().out
        assert output.count(message) == 1
        assert "8/7" not in output  # steps, in the progress bar
        curves.append(history.curves)
        weights.append(model.get_weights())
    # Of training and test images, once, up to the layer before dropout1, which is random.
    assert [tuple(features.shape) for features in cached] == [(100, 2, 2, 6), (50, 2, 2, 6)]
    assert {features.dtype.size for features in cached} == {bytes_each}
    assert np.allclose(*curves, atol=5e-4)
    assert all(np.allclose(*arrays, atol=1e-4) for arrays in zip(*weights, strict=True))
    pd.testing.assert_frame_equal(pd.read_csv("reports/pretrain/history.csv"), curves[1])  # written while it trained


def test_features_of_a_training_are_freed_before_the_next(params, tasks, train, monkeypatch):
    caches = []

    class Watched(mmap.mmap):
        def __init__(self, *given):
            caches.append(weakref.ref(self))

    monkeypatch.setattr(mmap, "mmap", Watched)
    for _ in range(2):  # as a fine-tuning and its control
        train(params(), tasks["target"], ["output"])
    assert [cache() for cache in caches[:2]] == [None, None]
    assert len(caches) == 4  # training and test images


@pytest.mark.parametrize(("patience", "stops"), [(2, True), (50, False)])
def test_best_epoch_is_kept_whether_or_not_training_stops_early(params, train, run, patience, stops):
    recipe = {"pretrain.patience": patience, "pretrain.epochs": 12, "pretrain.learning_rate": 0.2}
    settings = params(**recipe, **{"data.validation_fraction": 0.25})
    run("prepare")
    task = read_task("source")
    model, (curves, _) = train(settings, task)
    best = curves["val_loss"].argmin()
    assert len(curves) == (best + 1 + patience if stops else 12)
    assert curves["kept"].tolist() == [int(row == best) for row in range(len(curves))]
    assert curves["val_loss"].iloc[-1] > curves["val_loss"][best]
    assert losses(model, task.validation).mean() == pytest.approx(curves["val_loss"][best], rel=1e-4)


def test_balanced_classes_weigh_the_same_in_the_training_loss(params, tasks, train):
    x, y = tasks["source"].train.x, tasks["source"].train.y
    rows = np.sort(np.concatenate([np.flatnonzero(y == label)[: 2 + 4 * label] for label in range(5)]))
    split = replace(tasks["source"].train, x=x[rows], y=y[rows])
    frozen = {"model.dropout": 0.0, "pretrain.epochs": 1, "pretrain.learning_rate": 1e-12}
    settings = params(**frozen, **{"pretrain.class_weight": "balanced"})
    model, (curves, _) = train(settings, replace(tasks["source"], train=split))
    by_class = pd.Series(losses(model, split)).groupby(split.y).mean()
    assert curves["loss"][0] == pytest.approx(by_class.mean(), rel=1e-4)
    assert curves["loss"][0] != pytest.approx(losses(model, split).mean(), rel=1e-3)


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(5, 16, 35), (1, 64, 2)])
def test_cosine_schedule_warms_up_peaks_and_ends_at_zero(epochs, batch_size, steps):
    optimizer = make_optimizer(Recipe(schedule="cosine", epochs=epochs, batch_size=batch_size), images=100)
    rates = []
    for step in range(steps + 1):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    peak = steps // 5
    after = np.arange(steps - peak + 1) / (steps - peak)
    assert rates[:peak] == pytest.approx(np.linspace(0, 1e-3, peak, endpoint=False), abs=1e-9)
    assert rates[peak:] == pytest.approx(1e-3 * (1 + np.cos(np.pi * after)) / 2, abs=1e-9)


def test_augmentation_is_repeatable_only_in_training_and_no_part_of_the_model(params, tasks, train, capsys):
    learned = []
    for names in (list(augment.LAYERS), list(augment.LAYERS), []):
        settings = params(**{"pretrain.augment": names})
        model, _ = train(settings, tasks["source"], ["fc2", "output"])  # behind a frozen body
        learned.append(model.layers[-1].get_weights()[0])
        assert not {layer.name for layer in model.layers} & set(augment.LAYERS)
        x = tasks["source"].test.x
        assert np.allclose(augment.with_augmentation(model, names)(x, training=False), model(x), atol=1e-6)
    assert capsys.readouterr().out.count("augmentation changes every image, so features cannot be cached") == 2
    assert np.array_equal(learned[0], learned[1])
    assert not np.allclose(learned[0], learned[2], atol=1e-3)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("pretrain", {"pretrain.learning_rate": 1e30, "pretrain.optimizer": "sgd"},
         r"pretrain: .* epoch 1 of 3.* pretrain\.learning_rate "),
        ("finetune_x", {}, r"params\.yaml: finetune_x: was missing"),
        ("finetune_fc", {}, r"models/pretrain\.keras: missing"),
    ],
)  # fmt: skip
def test_training_that_is_impossible_or_diverges_ends_in_one_line(params, tasks, run, stage, changes, message):
    params(**changes)
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        run(stage)
    assert not list(MODELS.glob("*.keras"))


def test_nothing_but_the_folder_of_downloads_is_taken_from_the_users_keras_configuration(tmp_path):
    (tmp_path / "keras.json").write_text("[]")
    limits = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    names = "config.max_epochs(), config.max_steps_per_epoch(), config.keras_home()"
    code = f"import stages.training; from keras.src.backend import config; print({names})"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=os.environ | limits, text=True)
    assert found == f"None None {tmp_path}\n"


def test_threads_are_one_per_usable_core_by_default(tiny, monkeypatch):
    monkeypatch.setattr(tf.config, "threading", Mock())
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    configure(tiny.model_copy(update={"threads": None}))
    tf.config.threading.set_intra_op_parallelism_threads.assert_called_once_with(3)


def test_each_image_comes_once_an_epoch_in_an_order_of_its_own_which_is_the_same_on_every_machine():
    x = np.arange(103, dtype=np.uint8)[:, None, None, None].repeat(12, axis=3)
    order = ShuffleOrder(103, seed=3)
    dataset = make_dataset(x, np.arange(103), 10, order)
    orders = []
    for epoch in (0, 1, 0):
        order.on_epoch_begin(epoch)
        batches = list(dataset.as_numpy_iterator())
        assert [len(labels) for _, labels in batches] == [10] * 10 + [3]
        assert all((images[:, 0, 0, 0] == labels).all() for images, labels in batches)
        orders.append([int(label) for _, labels in batches for label in labels])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(103))
    assert orders[0] == orders[2] != orders[1]
    order, drawn = ShuffleOrder(8, seed=1), []
    for epoch in range(3):
        order.on_epoch_begin(epoch)
        drawn.append(order.rows().tolist())
    assert drawn == [[5, 0, 1, 4, 2, 6, 3, 7], [6, 1, 4, 0, 3, 2, 5, 7], [6, 0, 7, 5, 1, 4, 3, 2]]
