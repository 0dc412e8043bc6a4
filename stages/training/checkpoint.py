"""Save the state of a training after whole epochs, and resume it if it was interrupted.

Keras's BackupAndRestore leaves out the states of random generators, the learning curves and early stopping.
"""

import hashlib
import random
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pooch
import tensorflow as tf

from stages.settings import Recipe
from stages.shared.errors import UserError
from stages.shared.npz import read_npz, write_npz
from stages.shared.tasks import Task
from stages.training.runtime import describe_environment

FOLDER = Path(pooch.os_cache("transfer-learning-pipeline")) / "trainings"  # `dvc exp run --temp` loses its own folder
CURVES = ("accuracy", "loss", "val_accuracy", "val_loss")
INTERVAL = 1.0  # seconds of training between two checkpoints, at least
MAX_SHARE = 20  # writing takes less than this part of the time
EXPIRES = 7 * 24 * 3600  # seconds


class Checkpoint(keras.callbacks.Callback):
    """Save everything that the rest of a training depends on; the last callback but those that read `curves`.

    `curves` has one row an epoch, see `CURVES`. `cached`: the model is trained on cached features.
    """

    def __init__(self, stage: str, model: keras.Model, task: Task, recipe: Recipe, cached: bool):
        super().__init__()
        self.stage, self.path = stage, FOLDER / _key(model, task, recipe, cached) / "state.npz"
        self.stopping: keras.callbacks.EarlyStopping | None = None
        self.curves: list[list[float]] = []
        self._start = time.perf_counter()
        self._next = self._start + INTERVAL
        self._saved: dict[str, np.ndarray] = {}

    @property
    def seconds(self) -> float:
        """Return the training time, that before interruptions included."""
        return time.perf_counter() - self._start

    def table(self) -> pd.DataFrame:
        """Return the learning curves so far, see `fit.History`."""
        curves = pd.DataFrame(self.curves, columns=list(CURVES))
        return curves.set_index(curves.index + 1).rename_axis("epoch").reset_index()

    def load(self, model: keras.Model, stopping: keras.callbacks.EarlyStopping | None) -> None:
        """Load the checkpoint of a compiled model, if there is a valid one."""
        self.stopping = stopping
        model.optimizer.build(model.trainable_variables)
        shapes = {"seconds": ()} | {f"variable{i}": variable.shape for i, variable in enumerate(_variables(model))}
        if stopping:
            shapes |= {"stopping": (3,)} | {f"best{i}": weight.shape for i, weight in enumerate(model.weights)}
        with suppress(UserError):
            saved = read_npz(self.path, ("curves", *shapes))
            fits = all(saved[name].shape == tuple(shape) for name, shape in shapes.items())
            if fits and saved["curves"].shape[1:] == (len(CURVES),):
                self._saved, self.curves = saved, saved["curves"].tolist()
                self._start -= float(saved["seconds"])
                print(f"{self.stage}: resuming after epoch {len(self.curves)}")

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restore the loaded state, once ``fit`` has reset the other callbacks."""
        if not self._saved:
            return
        for i, variable in enumerate(_variables(self.model)):
            variable.assign(self._saved[f"variable{i}"])
        if self.stopping:
            self.stopping.wait, self.stopping.best_epoch = (int(n) for n in self._saved["stopping"][:2])
            self.stopping.best = float(self._saved["stopping"][2])
            self.stopping.best_weights = [self._saved[f"best{i}"] for i, _ in enumerate(self.model.weights)]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Add a row to the curves; save a checkpoint if that takes little time and training goes on."""
        self.curves.append([(logs or {})[name] for name in CURVES])
        start = time.perf_counter()
        if start < self._next or self.model.stop_training:
            return
        state: dict[str, Any] = {"curves": self.curves, "seconds": self.seconds}
        state |= {f"variable{i}": variable.numpy() for i, variable in enumerate(_variables(self.model))}
        if self.stopping:
            state["stopping"] = [self.stopping.wait, self.stopping.best_epoch, self.stopping.best]
            state |= {f"best{i}": weights for i, weights in enumerate(self.stopping.best_weights)}
        with suppress(OSError, UserError):  # a full disk must not end a training
            write_npz(self.path, {name: np.asarray(value) for name, value in state.items()})
        now = time.perf_counter()
        self._next = now + max(INTERVAL, MAX_SHARE * (now - start))

    def delete(self) -> None:
        """Delete this checkpoint, and any untouched for a week."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        with suppress(OSError):
            for folder in FOLDER.glob("[0-9a-f]" * 64):
                if folder.stat().st_mtime < time.time() - EXPIRES:
                    shutil.rmtree(folder, ignore_errors=True)  # follows no link


def _variables(model: keras.Model) -> list[keras.Variable]:
    """List everything that training changes: weights, states of random generators, the optimizer's variables."""
    return [*model.variables, *model.optimizer.variables]


def _key(model: keras.Model, task: Task, recipe: Recipe, cached: bool) -> str:
    """Hash everything that the result of a training depends on."""
    splits = task.train, task.curve_split
    arrays = [*(array for split in splits for array in (split.x, split.y)), *(v.numpy() for v in model.variables)]
    context = [
        re.sub(r'"shared_object_id": \d+', "", model.to_json()),  # an address in memory
        (recipe.model_dump(), cached),
        random.getstate(),  # as `configure` has seeded it
        [(array.shape, array.dtype) for array in arrays],
        describe_environment(),
        tf.config.list_logical_devices(),
    ]
    found = hashlib.sha256(repr(context).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
