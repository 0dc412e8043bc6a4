"""The optimizer and its learning-rate schedule."""

import math

import keras

from stages.settings import Recipe


def make_optimizer(recipe: Recipe, images: int) -> keras.optimizers.Optimizer:
    """Make a recipe's optimizer for so many training images, which set the length of the schedule."""
    rate: float | keras.optimizers.schedules.LearningRateSchedule = recipe.learning_rate
    if recipe.schedule == "cosine":
        steps = recipe.epochs * math.ceil(images / recipe.batch_size)
        warm_up = steps // 5
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
        )
    return keras.optimizers.get({"class_name": recipe.optimizer, "config": {"learning_rate": rate}})
