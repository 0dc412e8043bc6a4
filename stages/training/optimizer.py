"""The optimizer and its learning-rate schedule."""

import math
from collections.abc import Container

import keras
import tensorflow as tf

from stages.settings import Recipe


def make_optimizer(recipe: Recipe, images: int, base: Container[str] = ()) -> keras.optimizers.Optimizer:
    """Make a recipe's optimizer for so many training images, which set the length of the schedule.

    `base`: paths of the variables that ``base_learning_rate`` applies to.
    """
    rate: float | keras.optimizers.schedules.LearningRateSchedule = recipe.learning_rate
    if recipe.schedule == "cosine":
        steps = recipe.epochs * math.ceil(images / recipe.batch_size)
        warm_up = steps // 5
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
        )
    config = {"learning_rate": rate, "global_clipnorm": recipe.clip_norm}
    config |= {} if recipe.weight_decay is None else {"weight_decay": recipe.weight_decay}
    optimizer = keras.optimizers.get({"class_name": recipe.optimizer, "config": config})
    if recipe.base_learning_rate < 1:
        step = optimizer.update_step

        def update_step(gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
            path = variable.name.rpartition(":")[0]
            step(gradient, variable, learning_rate * (recipe.base_learning_rate if path in base else 1.0))

        optimizer.update_step = update_step
    return optimizer
