"""Train the control of a fine-tuning: the same layers, in the same way, from random weights."""

from typing import NamedTuple

import keras
import numpy as np

from stages.settings import FinetuneRecipe, Settings
from stages.shared.tasks import Task
from stages.training.fit import History, fit
from stages.training.freeze import freeze_except
from stages.training.model import replace_head


class Control(NamedTuple):
    """A trained control, and its history."""

    model: keras.Model
    history: History


def prepare(model: keras.Model, task: Task, recipe: FinetuneRecipe, stage: str) -> keras.Model:
    """Prepare a network for fine-tuning: replace the head if the recipe says so, and freeze layers."""
    if recipe.head == "reset":
        model = replace_head(model, len(task.class_names))
    freeze_except(model, recipe.trainable, f"{stage}.trainable")
    return model


def train_control(
    pretrained: keras.Model, task: Task, recipe: FinetuneRecipe, stage: str, params: Settings
) -> Control | None:
    """Train from the random weights that `pretrain` started from; it shows what the pretrained ones are worth.

    Returns None if `pretrained` still has these weights: fine-tuning is then its own control.
    """
    keras.utils.set_random_seed(params.seed)
    model = keras.models.clone_model(pretrained)  # draws the weights that `pretrain` drew
    if all(map(np.array_equal, model.get_weights(), pretrained.get_weights())):
        return None
    print(f"{stage}: control, from random weights")
    model = prepare(model, task, recipe, stage)
    return Control(model, fit(model, task, recipe, stage, params, "control_history.csv"))
