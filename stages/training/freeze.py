"""Freeze layers for fine-tuning, and split a model into a frozen body and a trained head."""

import re
from collections import Counter
from typing import Any

import keras

from stages.settings import FinetuneRecipe
from stages.shared.errors import SettingError, short_repr
from stages.shared.tasks import Task
from stages.training.backbone import base_layers
from stages.training.model import replace_head


def prepare_model(
    model: keras.Model, classes: list[str], task: Task, recipe: FinetuneRecipe, stage: str, random: bool
) -> keras.Model:
    """Prepare a network trained on `classes` for fine-tuning: replace the head if the recipe says so, freeze layers.

    With `auto`, the head is kept if it is one of the task's classes already, or if the two tasks have equally many
    classes of one dataset, as in the notebook. `random`: the network is untrained.
    """
    fits = classes == task.class_names or (task.one_dataset and len(classes) == len(task.class_names))
    if recipe.head == "reset" or (recipe.head == "auto" and not fits):
        if "output" not in recipe.trainable:
            raise SettingError(f"{stage}.trainable", recipe.trainable, "'output' in it: the output layer is a new one")
        model = replace_head(model, len(task.class_names))
    freeze_except(model, recipe.trainable, f"{stage}.trainable", random)
    return model


def freeze_except(model: keras.Model, trainable: list[str], setting: str = "trainable", random: bool = False) -> None:
    """Freeze all layers but the named ones.

    A name stands for all layers whose names begin with it (``conv1`` not for ``conv10``), ``backbone`` for all layers
    of the base, ``last_block`` for its last block and the layers above that. Batch normalisation is frozen, unless the
    weights are `random`. Raises `SettingError` with the names to choose from if a name stands for no weights.
    """
    names = [layer.name for layer in model.layers]
    base = [] if isinstance(model, keras.Sequential) else [layer.name for layer in base_layers(model)]
    with_weights = [layer.name for layer in model.layers if layer.weights]
    chosen = set[str]()
    for given in trainable:
        beginning = re.compile(rf"{re.escape(given)}(?!\d)")
        parts = {"backbone": base, "last_block": _last_block(base)}
        matches = parts.get(given) or [name for name in names if beginning.match(name)]
        if not set(matches) & set(with_weights):
            blocks = dict.fromkeys(re.sub(r"^(\D*\d+[a-z]?)_.*", r"\1", name) for name in with_weights if name in base)
            choices = [*[name for name in with_weights if name not in base][::-1], "backbone", *[*blocks][::-1]]
            expected = f"layers, or the beginnings of their names, from the output down: {short_repr(choices)}"
            raise SettingError(setting, given, expected)
        chosen.update(matches)
    for layer in model.layers:
        # A base's batch normalisation stays in inference mode, as its averages would not follow a short training
        # (Keras 3.15 trains it even where the base is called with training=False: keras#20285).
        of_base = isinstance(layer, keras.layers.BatchNormalization) and not random
        layer.trainable = layer.name in chosen and not of_base


def _last_block(base: list[str]) -> list[str]:
    """Select, of a base's layer names in order, the last three or more with one prefix, and those after them."""
    block = {name: match[1] for name in base if (match := re.match(r"(\D*\d+[a-z]?)_", name))}
    sizes = Counter(block.values())
    last = [name for name in block if sizes[block[name]] > 2][-1:]
    return base[min(base.index(name) for name in block if block[name] == block[last[0]]) :] if last else []


def is_stochastic(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is random in training; a frozen Dropout is, unless its rate is 0."""
    # Only `variables` has the state of random generators.
    return len(layer.variables) > len(layer.weights) and getattr(layer, "rate", None) != 0


def nodes(model: keras.Model) -> list[Any]:
    """List the layers in order and, between them, the graph's operations that are no layers."""
    return model.layers if isinstance(model, keras.Sequential) else model.operations


def cut_points(model: keras.Model) -> list[int]:
    """Find the nodes that every path to the output goes through; returns their positions."""
    found = nodes(model)
    if isinstance(model, keras.Sequential):
        return list(range(len(found)))
    position = {id(node.output): i for i, node in enumerate(found)}
    last_use = [0] * len(found)
    for i, node in enumerate(found[1:], 1):
        for tensor in keras.tree.flatten(node.input):
            last_use[position[id(tensor)]] = i
    return [i for i in range(len(found)) if max(last_use[:i], default=0) <= i]


def submodel(model: keras.Model, start: int, stop: int | None) -> keras.Model:
    """Make a model of the nodes from `start` up to `stop`, cut points both; it shares their layers."""
    chosen = nodes(model)[start:stop]
    if isinstance(model, keras.Sequential):
        return keras.Sequential([keras.Input(chosen[0].input.shape[1:], dtype=chosen[0].input.dtype), *chosen])
    return keras.Model(nodes(model)[max(start - 1, 0)].output, chosen[-1].output)


def split_at_first_trained(model: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """Split a model into body and head, at the last cut point before the first trained or stochastic layer.

    The body's output for an image is the same in every epoch; it is None if no frozen layer with weights comes first.
    Both share their layers with `model`: training the head trains `model`.
    """
    layers = [node if isinstance(node, keras.layers.Layer) else None for node in nodes(model)]
    changing = (layer and ((layer.trainable and layer.weights) or is_stochastic(layer)) for layer in layers)
    first = next(i for i, changes in enumerate(changing) if changes)
    cut = max((i + 1 for i in cut_points(model) if i < first), default=0)
    if not any(layer.weights for layer in layers[:cut] if layer):
        return None, model
    return submodel(model, 0, cut), submodel(model, cut, None)
