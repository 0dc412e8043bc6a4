"""Where a pretraining step's time goes: ``python benchmarks/profile_step.py --precision float32``.

Trains the notebook's network on random pixels under TensorFlow's profiler: the time of each kind of operation beside
that of the whole step, and beside what convolution would take at the peak, which is measured by a large matrix product.
Operations run at the same time where they can, so their sum may exceed the step. A 16-bit precision is that of the
fast recipe: Adam, pixels standardised.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from stages import settings
from stages.training import loop, network
from stages.training.batches import Order, batches

BATCH, STEPS, PROFILED = 64, 200, range(50, 100)
SIDE = 4096  # of the matrices whose product gives the peak
KINDS = {  # by what is in an operation's name, the first that fits
    "dropout": "dropout",
    "convolution": "conv2d",
    "dense layers": "matmul",
    "optimizer": "rm_sprop|adam",
    "gradient of ReLU": "relugrad",
    "pooling": "maxpool",
}


class Profile(keras.callbacks.Callback):
    """Times every step, and profiles some."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder, self.seconds = folder, list[float]()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if batch == PROFILED.start:
            tf.profiler.experimental.start(self.folder)
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.seconds.append(time.perf_counter() - self.start)
        if batch == PROFILED.stop - 1:
            tf.profiler.experimental.stop()

    def milliseconds(self) -> pd.Series:
        """Of each operation in a step, float, by its name."""
        space, found = xplane_pb2.XSpace(), Counter[str]()
        space.ParseFromString(next(Path(self.folder).rglob("*.xplane.pb")).read_bytes())
        cpu = next(plane for plane in space.planes if plane.name == "/host:CPU")
        for line in cpu.lines:
            for event in line.events:
                name = cpu.event_metadata[event.metadata_id].name
                if name.startswith("StatefulPartitionedCall/"):
                    found[name] += event.duration_ps / 1e9 / len(PROFILED)
        return pd.Series(found)


def peak(dtype: str) -> float:
    """Operations a second of a large matrix product, the best of ten."""
    matrix = tf.cast(tf.random.stateless_normal((SIDE, SIDE), seed=(0, 0)), dtype)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        tf.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def convolutions(model: keras.Sequential) -> int:
    """Operations of a step's convolutions: outputs, gradients of the weights, of the inputs too but for the first."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    of_output = [2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:3]) for layer in layers]
    return BATCH * (3 * sum(of_output) - of_output[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=["float32", "mixed_bfloat16"], default="float32")
    precision = parser.parse_args().precision
    mixed = precision != "float32"
    params = settings.Settings(precision=precision, model={"rescale": mixed})
    loop.set_up(params)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (BATCH * STEPS, 32, 32, 3), dtype=np.uint8)
    y = random.integers(0, 5, len(x))
    model = network.build(x.shape[1:], 5, params.model, x, "random")
    model.compile("adam" if mixed else "rmsprop", "sparse_categorical_crossentropy", metrics=["accuracy"])
    order = Order(x, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        profile = Profile(folder)
        model.fit(batches(x, y, BATCH, order), shuffle=False, verbose=0, callbacks=[order, profile])
        operations = profile.milliseconds()
    of_kind, left = {}, operations
    for kind, pattern in KINDS.items():
        fits = left.index.str.lower().str.contains(pattern)
        of_kind[kind], left = left[fits].sum(), left[~fits]
    operations_a_second = peak(keras.config.dtype_policy().compute_dtype)
    at_peak = convolutions(model) / operations_a_second * 1e3
    rows = {**of_kind, "other": left.sum(), "whole step": statistics.median(profile.seconds[PROFILED.stop :]) * 1e3}
    print(pd.Series(rows).round(1).rename("ms a step").to_markdown())
    print(f"\nConvolution at the peak, {operations_a_second / 1e9:,.0f} GFLOP/s: {at_peak:.1f} ms")


if __name__ == "__main__":
    main()
