"""Train a model on a task."""

import gc
import math
from dataclasses import replace
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd

from stages.settings import Recipe, Settings
from stages.shared.errors import SettingError, UserError
from stages.shared.files import stage_folder, write_atomic
from stages.shared.program import on_success
from stages.shared.tasks import Task
from stages.training import feature_cache
from stages.training.augment import Mixing, with_augmentation
from stages.training.backbone import base_layers, update_statistics
from stages.training.checkpoint import CURVES, Checkpoint
from stages.training.freeze import split_at_first_trained
from stages.training.input_pipeline import ShuffleOrder, evaluation_batch_size, make_dataset
from stages.training.optimizer import make_optimizer


class History(NamedTuple):
    """Learning curves and the training time.

    curves: one row an epoch: epoch (int, from 1), accuracy, loss (running means while training), val_accuracy, val_loss
    (after the epoch, on the task's `curve_split`); with early stopping also `kept`, 1 in the row of the epoch whose
    weights the model has at the end, else 0.
    """

    curves: pd.DataFrame
    seconds: float


def fit(
    model: keras.Model, task: Task, recipe: Recipe, stage: str, params: Settings, file: str = "history.csv"
) -> History:
    """Train a model's trainable layers, or resume that where it was interrupted.

    Writes the learning curves so far to `file` in the stage's folder. Raises `UserError` if the loss is not a number.
    """
    if recipe.epochs == 0:
        return History(pd.DataFrame(columns=["epoch", *CURVES]), 0.0)
    if recipe.patience and not len(task.validation.y):
        expected = "null, or validation images: test images must not choose the epoch"
        raise SettingError(f"{stage}.patience", recipe.patience, expected)

    # Split the model, and decide whether to cache the features of its frozen body.
    train, curve, cached = task.train, task.curve_split, False
    body, head = split_at_first_trained(model)
    if body is not None:
        cached, why = feature_cache.check_size(body, len(train.y) + len(curve.y), recipe)
        print(f"{stage}: {why}")
    checkpoint = Checkpoint(stage, model, task, recipe, cached)

    # Train the head on the features, or all of the model on the images. Both share their layers with `model`.
    if body is not None and cached:
        network = head
        gc.collect()  # frees the features of the training before, which Keras's objects hold in a cycle
        train, curve = (replace(split, x=feature_cache.compute(body, split.x)) for split in (train, curve))
    else:
        network = with_augmentation(model, recipe.augment)
    mixing, loss = Mixing(recipe.augment, params.seed), "sparse_categorical_crossentropy"
    if mixing.layers or recipe.label_smoothing:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing)
        one_hot = np.eye(len(task.class_names), dtype=np.float32)
        train, curve = (replace(split, y=one_hot[split.y]) for split in (train, curve))
    short = cached or math.prod(task.train.x.shape[1:3]) <= 32 * 32
    base = {variable.path for layer in base_layers(model) for variable in layer.variables}
    network.compile(
        make_optimizer(recipe, len(train.y), base),
        loss=loss,
        metrics=["accuracy"],
        # Pays if a step is short, and leaves every bit as it is.
        steps_per_execution=min(8, math.ceil(len(train.y) / recipe.batch_size)) if short else 1,
    )

    # Resume from the checkpoint, if there is one; it is deleted once the stage has succeeded.
    stopping = None
    if recipe.patience:
        stopping = keras.callbacks.EarlyStopping(recipe.monitor, patience=recipe.patience, restore_best_weights=True)
    checkpoint.load(network, stopping)
    on_success(checkpoint.delete)

    # Train.
    order = ShuffleOrder(len(train.y), params.seed)
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: write_history(stage, checkpoint.table(), file))
    network.fit(
        make_dataset(train.x, train.y, recipe.batch_size, order, mixing if mixing.layers else None),
        shuffle=False,  # `order` does that
        epochs=recipe.epochs,
        initial_epoch=len(checkpoint.curves),
        validation_data=make_dataset(curve.x, curve.y, evaluation_batch_size(task.train.x.shape[1:])),
        callbacks=[*filter(None, (order, mixing, keras.callbacks.TerminateOnNaN(), stopping)), checkpoint, watch],
        class_weight=_balanced_weights(task.train.y) if recipe.class_weight else None,
    )

    curves = checkpoint.table()
    if not np.isfinite(curves["loss"]).all():
        checkpoint.delete()
        raise UserError(
            f"{stage}: the loss became {curves['loss'].iloc[-1]} in epoch {len(curves)} of {recipe.epochs}: expected "
            f"a number; try a smaller {stage}.learning_rate (it was {recipe.learning_rate}) or model.rescale=true"
        )
    update_statistics(model, task.train.x, recipe.batch_size)
    if stopping:
        curves.insert(1, "kept", (curves.index == stopping.best_epoch).astype(int))
    return History(curves, checkpoint.seconds)


def write_history(stage: str, curves: pd.DataFrame, file: str = "history.csv") -> None:
    """Write learning curves, while a stage trains those so far: `dvc plots show` draws them."""
    write_atomic(stage_folder(stage) / file, curves.to_csv(index=False).encode())


def _balanced_weights(y: np.ndarray) -> dict[int, float]:
    """Weigh each label by n / (classes * count), as scikit-learn's ``class_weight="balanced"`` does."""
    labels, counts = np.unique(y, return_counts=True)
    return {int(label): len(y) / (len(labels) * count) for label, count in zip(labels, counts, strict=True)}
