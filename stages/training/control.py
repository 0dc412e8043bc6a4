"""Train the control of a fine-tuning: the same layers, in the same way, from random weights."""

import keras
import numpy as np

from stages.settings import PRETRAINED, FinetuneRecipe, Settings
from stages.shared.tasks import Task
from stages.training.fit import History, fit
from stages.training.freeze import prepare_model


def same_weights(model: keras.Model, other: keras.Model) -> bool:
    """Return whether all weights of two models are equal."""
    return all(map(np.array_equal, model.get_weights(), other.get_weights()))


def random_weights_of(model: keras.Model, seed: int) -> keras.Model:
    """Clone a model, with the random weights that `pretrain` started from."""
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(model)


def train_control(
    start: keras.Model, classes: list[str], task: Task, recipe: FinetuneRecipe, stage: str, params: Settings
) -> tuple[keras.Model, History] | None:
    """Train from random weights, which shows what those of `start` are worth; return the model and its history.

    Where `start` was fine-tuned on the task already, so is the control first: its output layer, by this recipe. Returns
    None if `start` still has random weights: fine-tuning is then its own control.
    """
    model = random_weights_of(start, params.seed)
    if same_weights(model, start):
        return None
    print(f"{stage}: control, from random weights")
    if classes == task.class_names and recipe.start != PRETRAINED:
        probe = recipe.model_copy(update={"trainable": ["output"]})
        model = prepare_model(model, classes, task, probe, stage, random=True)
        fit(model, task, probe, stage, params, "control_history.csv")
        probed = model.get_weights()
        model = random_weights_of(start, params.seed)  # with the random states of a model that was loaded
        model.set_weights(probed)
    model = prepare_model(model, classes, task, recipe, stage, random=True)
    return model, fit(model, task, recipe, stage, params, "control_history.csv")
