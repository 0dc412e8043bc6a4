"""A training that is interrupted goes on: its state after a whole epoch is kept until its stage has ended.

Keras's BackupAndRestore leaves out the states of random generators, the curves so far, and what early stopping knows.
"""

import hashlib
import platform
import random
import re
import shutil
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pooch
import tensorflow as tf

from stages.settings import Recipe
from stages.shared.errors import UserError
from stages.shared.halves import Half
from stages.shared.npz import read_npz

FOLDER = Path(pooch.os_cache("transfer-learning-pipeline")) / "trainings"  # `dvc exp run --temp` loses its own folder
CURVES = ("accuracy", "loss", "val_accuracy", "val_loss")
EVERY = 1.0  # seconds of training that may be lost
SHARE = 20  # writing takes less than this part of the time
ABANDONED = 7 * 24 * 3600  # seconds


class Checkpoint(keras.callbacks.Callback):
    """Keeps what the rest of a training depends on; `curves` has a row an epoch, see `CURVES`. Last among callbacks."""

    def __init__(self, stage: str, model: keras.Sequential, half: Half, recipe: Recipe, in_two: bool):
        super().__init__()
        self.stage, self.path = stage, FOLDER / _key(model, half, recipe, in_two) / "state.npz"
        self.stopping: keras.callbacks.EarlyStopping | None = None
        self.curves: list[list[float]] = []
        self._start = time.perf_counter()
        self._next = self._start + EVERY
        self._kept: dict[str, np.ndarray] = {}

    @property
    def seconds(self) -> float:
        """How long the training has taken, what came before an interruption included."""
        return time.perf_counter() - self._start

    def read(self, model: keras.Sequential, stopping: keras.callbacks.EarlyStopping | None) -> None:
        """Look for the state of a compiled model's interrupted training; one that is damaged is passed over."""
        self.stopping = stopping
        model.optimizer.build(model.trainable_variables)
        keys = ["curves", "seconds", *(f"variable{i}" for i, _ in enumerate(_variables(model)))]
        if stopping:
            keys += ["stopping", *(f"best{i}" for i, _ in enumerate(model.weights))]
        with suppress(UserError):
            self._kept = read_npz(self.path, tuple(keys))
            self.curves = self._kept["curves"].tolist()
            self._start -= float(self._kept["seconds"])
            print(f"{self.stage}: goes on after epoch {len(self.curves)}, where it was interrupted")

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Bring back what was kept, once ``fit`` has reset the other callbacks."""
        if not self._kept:
            return
        for i, variable in enumerate(_variables(self.model)):
            variable.assign(self._kept[f"variable{i}"])
        if self.stopping:
            self.stopping.wait, self.stopping.best_epoch = (int(n) for n in self._kept["stopping"][:2])
            self.stopping.best = float(self._kept["stopping"][2])
            self.stopping.best_weights = [self._kept[f"best{i}"] for i, _ in enumerate(self.model.weights)]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add to the curves; keep the state if that takes little of the time, and training does not stop here."""
        self.curves.append([(logs or {})[name] for name in CURVES])
        start = time.perf_counter()
        if start < self._next or self.model.stop_training:
            return
        kept: dict[str, Any] = {"curves": self.curves, "seconds": self.seconds}
        kept |= {f"variable{i}": variable.numpy() for i, variable in enumerate(_variables(self.model))}
        if self.stopping:
            kept["stopping"] = [self.stopping.wait, self.stopping.best_epoch, self.stopping.best]
            kept |= {f"best{i}": weights for i, weights in enumerate(self.stopping.best_weights)}
        with suppress(OSError):  # a full disk is no reason to end a training
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_name("unfinished.npz")
            np.savez(unfinished, **kept)
            unfinished.replace(self.path)
        now = time.perf_counter()
        self._next = now + max(EVERY, SHARE * (now - start))

    def remove(self) -> None:
        """Forget what was kept, and what other trainings left behind that nobody has taken up for a week."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        with suppress(OSError):
            for folder in FOLDER.iterdir():
                if folder.stat().st_mtime < time.time() - ABANDONED:
                    shutil.rmtree(folder, ignore_errors=True)


def _variables(model: keras.Sequential) -> list[keras.Variable]:
    """All that changes while a model is trained: weights, states of random generators, the optimizer's."""
    return [*model.variables, *model.optimizer.variables]


def _key(model: keras.Sequential, half: Half, recipe: Recipe, in_two: bool) -> str:
    """A hash of all that the result of a training depends on, in hexadecimal.

    `in_two`: the frozen part of the model is computed once, and the rest trained.
    """
    parts = half.train, getattr(half, half.curves_part)
    arrays = [*(array for part in parts for array in (part.x, part.y)), *(v.numpy() for v in model.variables)]
    surroundings = [
        re.sub(r'"shared_object_id": \d+', "", model.to_json()),  # an address in memory
        (recipe.model_dump(), in_two),
        random.getstate(),  # as `set_up` has seeded it
        [(array.shape, array.dtype) for array in arrays],
        (platform.node(), platform.python_version(), *map(version, ("tensorflow", "keras", "numpy"))),
        (tf.config.threading.get_intra_op_parallelism_threads(), tf.distribute.get_strategy().num_replicas_in_sync),
        tf.config.list_logical_devices(),
    ]
    found = hashlib.sha256(repr(surroundings).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
