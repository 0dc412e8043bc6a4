"""What is left of a training step, and what was tried on it: ``python benchmarks/step.py CIFAR10.npz --rounds 3``.

Trains ``finetune_fc``, from the frozen features of 6,400 images, and ``pretrain``, an epoch of 100 steps at a time, in
several ways in turn. Prints each way's milliseconds a step, and their ratio to the first way's of the same round.
The epoch before the first round, in which TensorFlow builds its graphs, is not counted.
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

BATCH, STEPS = 64, 100
AS_IT_IS = "Keras's fit on the pipeline's batches"
Epoch = Callable[[], object]


def compiled(rest: keras.Sequential, **options) -> keras.Sequential:
    """The trained part with weights of its own, compiled with the notebook's recipe and `options`."""
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


class ByteDropout(keras.layers.Layer):
    """Dropout that draws 8 random bits for a number, not 32; its rate is a multiple of 1/256."""

    def __init__(self, rate: float, **options):
        super().__init__(**options)
        self.dropped = round(rate * 256)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return x
        seed, count = tf.cast(self.seed_generator.next(), tf.int32), tf.size(x)
        words = tf.random.stateless_uniform([(count + 3) // 4], seed, None, None, tf.uint32)
        kept = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:count], tf.shape(x)) >= self.dropped
        return x * tf.cast(kept, x.dtype) * (256 / (256 - self.dropped))


def with_dropout(rest: keras.Sequential, dropout: Callable[[float], keras.layers.Layer] | None) -> keras.Sequential:
    """The same layers with another Dropout, or with none: no choice, but what its random numbers cost."""
    layers = [keras.Input(rest.input_shape[1:])]
    for layer in rest.layers:
        if not isinstance(layer, keras.layers.Dropout):
            layers.append(layer)
        elif dropout:
            layers.append(dropout(layer.rate))
    return keras.Sequential(layers)


def ways(rest: keras.Sequential, x: tf.Tensor, y: np.ndarray) -> dict[str, Epoch]:
    def epoch(model: keras.Sequential, x: tf.Tensor = x, **options) -> Epoch:
        batches = training.batches(x, y, BATCH, shuffle=True)
        return fitted(compiled(model, **options), batches, shuffle=False)

    tried = {
        AS_IT_IS: epoch(rest),
        "Keras's own batches of arrays": fitted(compiled(rest), x, y, batch_size=BATCH),
        "8 steps per execution": epoch(rest, steps_per_execution=8),
        "jit_compile=True": epoch(rest, jit_compile=True),
        "a training loop of its own, no metrics": own_loop(compiled(rest), x, y),
        "8 random bits for each number of dropout": epoch(with_dropout(rest, ByteDropout)),
        "no dropout (not the same recipe)": epoch(with_dropout(rest, None)),
    }
    if x.dtype == tf.float32:
        tried["features kept in bfloat16"] = epoch(rest, tf.cast(x, tf.bfloat16))
    return tried


def to_train(stage: str, half: dict[str, np.ndarray], params: Settings) -> dict[str, Epoch]:
    """The ways of training what `stage` trains, from what it trains it with."""
    x, y = half["x_train"][: BATCH * STEPS], half["y_train"][: BATCH * STEPS]
    model = network.build((32, 32, 3), 5, params.model, x)
    if stage == "pretrain":
        return ways(model, tf.constant(x), y)
    network.freeze_all_but(model, params.finetune(stage).trainable)
    trunk, rest = network.split_frozen(model)
    return ways(rest, training.features(trunk, x, params.feature_memory), y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    params = Settings.model_validate(nested(notebook.SETTINGS | {"data.path": str(options.data)}))
    training.set_up(params)
    prepared = prepare.prepare(params)
    print(f"{options.rounds} rounds of {STEPS} steps, {BATCH} images each")
    for stage, half in (("finetune_fc", prepared["target"]), ("pretrain", prepared["source"])):
        epochs = to_train(stage, half, params)
        seconds = {name: [] for name in epochs}
        for _ in range(options.rounds + 1):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                epoch()
                seconds[name].append(time.perf_counter() - start)
        table = pd.DataFrame(seconds).iloc[1:] * 1000 / STEPS
        ratio = table.div(table[AS_IT_IS], axis=0)
        columns = {"ms a step, median": table.median().round(2), "ratio: minimum": ratio.min().round(2)}
        columns |= {"median": ratio.median().round(2), "maximum": ratio.max().round(2)}
        print(f"\n`{stage}`\n\n{pd.DataFrame(columns).to_markdown()}")


if __name__ == "__main__":
    main()
