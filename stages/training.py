"""What every training stage does: set up TensorFlow, fit, predict, and record what came out."""

import math
import mmap
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import cpuinfo
import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from stages import network
from stages.arrays import read_npz, sha256, write_sealed, write_whole
from stages.settings import Pretrain, Settings, UserError

MODELS = Path("models")
REPORTS = Path("reports")
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Part:
    """Images uint8 (N, H, W, C), 0-255, and labels int64 (N,)."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Half:
    """One half of the dataset as `prepare` leaves it; `curves` are the images that the curves are drawn on."""

    train: Part
    curves: Part
    test: Part
    class_names: list[str]


def read_half(path: Path) -> Half:
    """Read ``source.npz`` or ``target.npz``; raises `UserError` when the file is damaged."""
    keys = tuple(f"{axis}_{part}" for part in ("train", "validation", "test") for axis in "xy")
    arrays = read_npz(path, (*keys, "class_names"))
    parts = {part: Part(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "validation", "test")}
    curves = parts["validation"] if len(parts["validation"].y) else parts["test"]
    return Half(parts["train"], curves, parts["test"], arrays["class_names"].tolist())


def set_up(params: Settings) -> int:
    """Seed everything, set the number of threads, the precision and Keras's defaults; returns the number of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = params.threads or cores
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # a CPU gives the same bits without
    keras.config.set_floatx("float32")  # a user's keras.json may say otherwise
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(params.precision)
    keras.utils.set_random_seed(params.seed)
    return threads


def on_devices(count: int) -> AbstractContextManager:
    """Where to build, load and train a model: one device, or `count` GPUs that share every batch.

    Raises `UserError` when there are fewer. Without GPUs the CPU's logical devices count, of which there is one.
    """
    if count == 1:
        return nullcontext()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if count > len(devices):
        names = ", ".join(device.name for device in devices)
        raise UserError(f"params.yaml: devices: was {count}, expected at most {len(devices)}: there is {names}")
    return tf.distribute.MirroredStrategy([device.name for device in devices[:count]]).scope()


def _optimizer(params: Pretrain, images: int) -> keras.optimizers.Optimizer:
    rate: float | keras.optimizers.schedules.LearningRateSchedule = params.learning_rate
    if params.schedule == "cosine":
        steps = params.epochs * math.ceil(images / params.batch_size)
        warm_up = steps // 5
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, warmup_target=params.learning_rate, warmup_steps=warm_up
        )
    return keras.optimizers.get({"class_name": params.optimizer, "config": {"learning_rate": rate}})


def _empty(shape: tuple[int, ...], memory: int) -> np.ndarray:
    """A float32 array to be filled, page-aligned: in memory, or in a temporary file where it exceeds `memory` bytes.

    The file lies in the workspace, as /tmp may be memory itself. It has no name and is gone with the process.
    """
    size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
    if size <= memory:
        return np.frombuffer(mmap.mmap(-1, size), dtype=np.float32).reshape(shape)
    with tempfile.TemporaryFile(dir=MODELS) as file:
        # Room is taken at once where the system can: a disk that fills up later would kill the process.
        os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.float32).reshape(shape)


def features(trunk: keras.Sequential, x: np.ndarray, memory: int) -> tf.Tensor:
    """The trunk's output for every image, float32 (N, ...), computed batch by batch.

    The tensor shares the array's memory, so that nothing is held twice; see `_empty` for where that is.
    """
    out = _empty((len(x), *trunk.output_shape[1:]), memory)
    compute = tf.function(lambda images: trunk(images, training=False))
    for start in range(0, len(x), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        out[batch] = compute(x[batch])
    return tf.experimental.dlpack.from_dlpack(out.__dlpack__())


def batches(x: np.ndarray | tf.Tensor, y: np.ndarray, size: int, shuffle: bool) -> tf.data.Dataset:
    """The batches that ``fit(x, y, batch_size=size, shuffle=shuffle)`` makes, in the same order, without autotuning.

    With it Keras waits after an epoch, now and then for as long as the epoch took: the autotuning thread may miss that
    it is to stop, and sleeps on (TensorFlow 2.21; docs/speed.md).
    """
    images, labels = tf.convert_to_tensor(x), tf.convert_to_tensor(y)

    def order(_: tf.Tensor) -> tf.Tensor:
        rows = tf.range(len(y))
        return tf.random.shuffle(rows) if shuffle else rows

    def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(images, rows), tf.gather(labels, rows)

    dataset = tf.data.Dataset.range(1).map(order).unbatch().batch(size).map(gather, num_parallel_calls=2).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False  # would copy the images into the graph
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    # Without their number Keras asks for one batch more, which costs each Dropout a random number.
    return dataset.with_options(options).apply(tf.data.experimental.assert_cardinality(math.ceil(len(y) / size)))


def fit(model: keras.Sequential, half: Half, params: Pretrain, stage: str, feature_memory: int = 0) -> float:
    """Train a model's trainable layers with the notebook's recipe, as `params` have it; returns the seconds it took.

    What frozen, deterministic layers make of an image is computed once, and the rest trained from there; beyond
    `feature_memory` bytes it is kept in a temporary file.
    Writes ``history/<stage>.csv`` line by line, epochs counted from 0.
    Raises `UserError` when the loss is not a number.
    """
    history = REPORTS / "history" / f"{stage}.csv"
    history.parent.mkdir(parents=True, exist_ok=True)
    history.write_text("epoch,accuracy,loss,val_accuracy,val_loss\n")  # all there is after no epochs
    if params.epochs == 0:
        return 0.0
    start = time.perf_counter()
    trunk, rest = network.split_frozen(model)
    x_train, x_curves = half.train.x, half.curves.x
    if trunk is not None:
        x_train, x_curves = (features(trunk, x, feature_memory) for x in (x_train, x_curves))
    # Keras wants the first batch of several devices' to fall into equal parts.
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    curves_batch = min(EVALUATION_BATCH, len(x_curves)) // devices * devices
    rest.compile(
        _optimizer(params, len(x_train)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        # Pays where a step is short, and leaves every bit as it is; of several devices TensorFlow refuses it.
        steps_per_execution=8 if trunk is not None and devices == 1 else 1,
    )
    rest.fit(
        batches(x_train, half.train.y, params.batch_size, shuffle=True),
        shuffle=False,  # it is, there
        epochs=params.epochs,
        validation_data=batches(x_curves, half.curves.y, curves_batch, shuffle=False),
        callbacks=[keras.callbacks.TerminateOnNaN(), keras.callbacks.CSVLogger(history, append=True)],
    )
    seconds = time.perf_counter() - start
    history.write_bytes(history.read_bytes().replace(b"\r\n", b"\n"))  # as Git and all other files have it
    losses = pd.read_csv(history)["loss"]
    if not np.isfinite(losses).all() or len(losses) < params.epochs:
        raise UserError(
            f"{stage}: the loss became {losses.iloc[-1]} in epoch {len(losses)} of {params.epochs}: expected a number; "
            f"try a smaller {stage}.learning_rate (it was {params.learning_rate}) or model.rescale=true"
        )
    return seconds


def finish(model: keras.Sequential, half: Half, stage: str, seconds: float, threads: int) -> None:
    """Save the model, predict the test images with what was saved and record what came out."""
    cpu = ThreadPoolExecutor(1).submit(cpuinfo.get_cpu_info)  # sleeps for a second, here beside the work
    network.save(model, MODELS / f"{stage}.keras")
    saved = keras.models.load_model(MODELS / f"{stage}.keras")
    log_probabilities = network.log_probabilities(saved, half.test.x, EVALUATION_BATCH)
    if not np.isfinite(log_probabilities).all():
        raise UserError(f"{stage}: predictions that are not numbers; try a smaller {stage}.learning_rate")
    predicted = log_probabilities.argmax(axis=1)
    names = np.array(half.class_names)
    predictions = pd.DataFrame(
        {
            "actual": names[half.test.y],
            "predicted": names[predicted],
            "probability": np.exp(log_probabilities.max(axis=1)),
        }
    )
    record = {
        "trainable_parameters": network.trainable_parameters(model),
        "test_accuracy": float((predicted == half.test.y).mean()),
        "test_loss": float(-log_probabilities[np.arange(len(predicted)), half.test.y].mean()),
        "set_up": _environment(threads, cpu.result()),
    }
    write_whole(REPORTS / "predictions" / f"{stage}.csv", predictions.to_csv(index=False, float_format="%.6f").encode())
    record["sha256_of"] = {
        kind: sha256((REPORTS / kind / f"{stage}.csv").read_bytes()) for kind in ("history", "predictions")
    }
    write_sealed(REPORTS / "record" / f"{stage}.json", record)
    write_sealed(REPORTS / "timing" / f"{stage}.json", {"train_seconds": seconds})
    print(f"{stage}: test accuracy {record['test_accuracy']:.4f}, test loss {record['test_loss']:.4f}, {seconds:.1f} s")


def _environment(threads: int, cpu: dict) -> dict:
    """What the bits of the result depend on besides the inputs."""
    vectors = [flag for flag in ("amx_tile", "avx512f", "avx2", "avx", "asimd") if flag in cpu.get("flags", [])]
    return {
        "cpu": cpu.get("brand_raw", "unknown"),
        "instruction_set": f"{cpu.get('arch', 'unknown')} {' '.join(vectors)}".strip(),
        "threads": threads,
        "python": platform.python_version(),
        **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
    }
