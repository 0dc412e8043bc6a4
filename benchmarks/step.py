"""What is left of a fine-tuning step, and what was tried on it: ``python benchmarks/step.py CIFAR10.npz --rounds 3``.

Computes the frozen features of the target images once and trains ``finetune_fc`` from them, an epoch at a time, in
several ways in turn. Prints each way's seconds as a ratio to the pipeline's own of the same round. The epoch before the
first round, in which TensorFlow builds its graphs, is not counted.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from stages import network, notebook, prepare, training  # noqa: E402
from stages.settings import Settings, nested  # noqa: E402

BATCH = 64
Epoch = Callable[[], object]


def compiled(rest: keras.Sequential, **options) -> keras.Sequential:
    """The trained part with weights of its own, compiled as the stages do, but for `options`."""
    model = keras.models.clone_model(rest)
    model.compile("rmsprop", loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def fitted(model: keras.Sequential, *data, **options) -> Epoch:
    return lambda: model.fit(*data, verbose=0, **options)


def own_loop(model: keras.Sequential, x: tf.Tensor, y: np.ndarray) -> Epoch:
    """Keras's layers and optimiser, but no metrics, callbacks or progress: what Keras's bookkeeping costs."""
    labels, loss = tf.constant(y), keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step(rows: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss(tf.gather(labels, rows), model(tf.gather(x, rows), training=True))
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(value, [weight.value for weight in weights]), weights)

    def epoch() -> None:
        order = np.random.default_rng(0).permutation(len(y))
        for start in range(0, len(order), BATCH):
            step(tf.constant(order[start : start + BATCH]))

    return epoch


def gathered_ahead(model: keras.Sequential, x: tf.Tensor, y: np.ndarray) -> Epoch:
    """The batches gathered by tf.data in parallel with the training."""
    rows = tf.data.Dataset.range(len(y)).shuffle(len(y)).batch(BATCH)
    labels = tf.constant(y)
    batches = rows.map(lambda i: (tf.gather(x, i), tf.gather(labels, i)), num_parallel_calls=2).prefetch(4)
    return fitted(model, batches, shuffle=False)


def without_dropout(rest: keras.Sequential) -> keras.Sequential:
    """The same layers without Dropout: no choice, but what its random numbers cost."""
    kept = [layer for layer in rest.layers if not isinstance(layer, keras.layers.Dropout)]
    return keras.Sequential([keras.Input(rest.input_shape[1:]), *kept])


def ways(rest: keras.Sequential, x: tf.Tensor, y: np.ndarray) -> dict[str, Epoch]:
    half_x = tf.cast(x, tf.bfloat16)
    return {
        "as the pipeline does": fitted(compiled(rest), x, y, batch_size=BATCH),
        "16 steps per execution": fitted(compiled(rest, steps_per_execution=16), x, y, batch_size=BATCH),
        "jit_compile=True": fitted(compiled(rest, jit_compile=True), x, y, batch_size=BATCH),
        "batches gathered ahead by tf.data": gathered_ahead(compiled(rest), x, y),
        "a training loop of its own, no metrics": own_loop(compiled(rest), x, y),
        "features kept in bfloat16": fitted(compiled(rest), half_x, y, batch_size=BATCH),
        "no dropout (not the same recipe)": fitted(compiled(without_dropout(rest)), x, y, batch_size=BATCH),
    }


def target_half(path: Path) -> dict[str, np.ndarray]:
    settings = nested(notebook.SETTINGS | {"data.path": str(path)})
    return prepare.prepare(Settings.model_validate(settings))["target"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    target = target_half(options.data)
    params = Settings.model_validate(nested(notebook.SETTINGS))
    training.set_up(params)
    model = network.build((32, 32, 3), 5, params.model, target["x_train"])
    network.freeze_all_but(model, params.finetune_fc.trainable)
    trunk, rest = network.split_frozen(model)
    epochs = ways(rest, training.features(trunk, target["x_train"], params.feature_memory), target["y_train"])
    seconds = {name: [] for name in epochs}
    for _ in range(options.rounds + 1):
        for name, epoch in epochs.items():
            start = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - start)
    table = pd.DataFrame(seconds).iloc[1:]
    ratio = table.div(table["as the pipeline does"], axis=0)
    print(f"{options.rounds} rounds, {len(target['y_train']):,} images\n")
    print(
        pd.DataFrame(
            {"seconds, median": table.median().round(2), "ratio: minimum": ratio.min().round(2),
             "median": ratio.median().round(2), "maximum": ratio.max().round(2)}
        ).to_markdown()
    )  # fmt: skip


if __name__ == "__main__":
    main()
