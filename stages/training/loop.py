"""Set TensorFlow up and train."""

import math
import os
from contextlib import AbstractContextManager, nullcontext

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from stages.settings import Recipe, Settings
from stages.shared.errors import UserError
from stages.shared.files import artifact, write_whole
from stages.shared.halves import Half, Part
from stages.shared.process import keep_freed_memory
from stages.training import network
from stages.training.augment import augmented
from stages.training.batches import Order, batches, evaluation_batch
from stages.training.checkpoint import CURVES, Checkpoint
from stages.training.features import Place, features, place


def set_up(params: Settings) -> int:
    """Seed everything, set the number of threads, the precision and Keras's defaults; returns the number of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = params.threads or cores
    keep_freed_memory()
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # a CPU gives the same bits without
    keras.config.set_floatx("float32")  # a user's keras.json may say otherwise
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(params.precision)
    keras.utils.set_random_seed(params.seed)
    return threads


def on_devices(count: int) -> AbstractContextManager:
    """Where to build, load and train a model: one device, or `count` GPUs that share every batch.

    Raises `UserError` if there are fewer. Without GPUs the CPU's logical devices count, of which there is one.
    """
    if count == 1:
        return nullcontext()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if count > len(devices):
        names = ", ".join(device.name for device in devices)
        raise UserError(f"params.yaml: devices: was {count}, expected at most {len(devices)}: there is {names}")
    return tf.distribute.MirroredStrategy([device.name for device in devices[:count]]).scope()


def fit(
    model: keras.Sequential, half: Half, recipe: Recipe, stage: str, params: Settings
) -> tuple[pd.DataFrame, float, Checkpoint]:
    """Train a model's trainable layers, or go on where that was interrupted.

    Returns the learning curves, the seconds it took, and the checkpoint, to be removed once the results are written.
    The curves have one row an epoch: epoch (int, from 1), accuracy, loss (running means while training), val_accuracy,
    val_loss (after the epoch, on the half's `curves_part`); with `recipe.patience` a second column, kept, is 1 in the
    row of the epoch whose weights the model has at the end, else 0. What frozen, deterministic layers make of an image
    is computed once, see `features`. Raises `UserError` if the loss is not a number.
    """
    train, curves, at_will = half.train, getattr(half, half.curves_part), params.image_memory
    trunk, rest = network.split_frozen(model)
    where: Place | None = None
    if trunk is not None and recipe.augment:
        print(f"{stage}: no image is the same twice, so frozen layers are computed in every step instead of once")
    elif trunk is not None:
        where, why = place(trunk, len(train.y) + len(curves.y), params)
        print(f"{stage}: {why}")
    checkpoint = Checkpoint(stage, model, half, recipe, where is not None)
    if recipe.epochs == 0:
        return pd.DataFrame(columns=["epoch", *CURVES]), 0.0, checkpoint
    if where is None:
        trunk, rest = None, augmented(model, recipe.augment) if recipe.augment else model
    elif trunk is not None:
        train, curves = (Part(features(trunk, part.x, where), part.y) for part in (train, curves))
    # Keras wants the first batch of several devices' to fall into equal parts.
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    curves_batch = min(evaluation_batch(half.train.x.shape[1:]), len(curves.y)) // devices * devices
    rest.compile(
        _optimizer(recipe, len(train.y)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # Pays if a step is short, and leaves every bit as it is; TensorFlow refuses it on several devices.
        steps_per_execution=8 if trunk is not None and devices == 1 else 1,
    )
    stopping = None
    if recipe.patience:
        stopping = keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True)
    checkpoint.read(rest, stopping)
    so_far = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: _write_curves(stage, checkpoint))  # to be watched
    order = Order(train.x, params.seed, 2**63 if where == "memory" else at_will)
    rest.fit(
        batches(train.x, train.y, recipe.batch_size, order),
        shuffle=False,  # it is, there
        epochs=recipe.epochs,
        initial_epoch=len(checkpoint.curves),
        validation_data=batches(curves.x, curves.y, curves_batch),
        callbacks=[order, keras.callbacks.TerminateOnNaN(), *([stopping] if stopping else []), checkpoint, so_far],
        class_weight=_balanced(train.y) if recipe.class_weight else None,
    )
    history = _history(checkpoint)
    if not np.isfinite(history["loss"]).all():
        checkpoint.remove()
        raise UserError(
            f"{stage}: the loss became {history['loss'].iloc[-1]} in epoch {len(history)} of {recipe.epochs}: expected "
            f"a number; try a smaller {stage}.learning_rate (it was {recipe.learning_rate}) or model.rescale=true"
        )
    if stopping:
        history.insert(1, "kept", (history.index == stopping.best_epoch).astype(int))
    return history, checkpoint.seconds, checkpoint


def _history(checkpoint: Checkpoint) -> pd.DataFrame:
    curves = pd.DataFrame(checkpoint.curves, columns=list(CURVES))
    return curves.set_index(curves.index + 1).rename_axis("epoch").reset_index()


def _write_curves(stage: str, checkpoint: Checkpoint) -> None:
    """Write the epochs so far for `dvc plots show`."""
    write_whole(artifact("history", stage), _history(checkpoint).to_csv(index=False).encode())


def _balanced(y: np.ndarray) -> dict[int, float]:
    """A weight for each label, n / (classes * count), as scikit-learn's ``class_weight="balanced"`` has it."""
    labels, counts = np.unique(y, return_counts=True)
    return {int(label): len(y) / (len(labels) * count) for label, count in zip(labels, counts, strict=True)}


def _optimizer(recipe: Recipe, images: int) -> keras.optimizers.Optimizer:
    rate: float | keras.optimizers.schedules.LearningRateSchedule = recipe.learning_rate
    if recipe.schedule == "cosine":
        steps = recipe.epochs * math.ceil(images / recipe.batch_size)
        warm_up = steps // 5
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
        )
    return keras.optimizers.get({"class_name": recipe.optimizer, "config": {"learning_rate": rate}})
