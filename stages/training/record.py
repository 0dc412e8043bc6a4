"""What a training leaves behind: model, learning curves, predictions of the test images, where it looked, a record."""

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import cpuinfo
import keras
import numpy as np
import pandas as pd
from scipy.special import log_softmax

from stages.shared.errors import UserError
from stages.shared.files import MODELS, artifact, sha256, write_sealed, write_whole
from stages.shared.halves import Half
from stages.shared.npz import write_npz
from stages.training import gradcam, model_files, network
from stages.training.batches import evaluation_batch

KINDS = ("history", "predictions", "gradcam")


def write(stage: str, model: keras.Model, half: Half, history: pd.DataFrame, seconds: float, threads: int) -> None:
    """Save the model, predict the half's test images with what was saved, and write all that the report needs.

    `history` and `seconds` are what `loop.fit` returns. Raises `UserError` if predictions are not numbers, or a file
    cannot be written.
    """
    cpu = ThreadPoolExecutor(1).submit(cpuinfo.get_cpu_info)  # sleeps for a second, here beside the work
    model_files.save(model, MODELS / f"{stage}.keras", half.class_names)
    saved = model_files.load(MODELS / f"{stage}.keras")
    log_p = log_probabilities(saved, half.test.x)
    if not np.isfinite(log_p).all():
        raise UserError(f"{stage}: predictions that are not numbers; try a smaller {stage}.learning_rate")
    predicted = log_p.argmax(axis=1)
    names = np.array(half.class_names)
    predictions = {
        "actual": names[half.test.y],
        "predicted": names[predicted],
        "probability": np.exp(log_p.max(axis=1)),
        "label": half.test.y,  # the order of the classes, for `dvc plots`
    }
    write_whole(artifact("history", stage), history.to_csv(index=False).encode())
    table = pd.DataFrame(predictions).to_csv(index=False, float_format="%.6f")
    write_whole(artifact("predictions", stage), table.encode())
    mistakes = gradcam.most_confident_mistakes(log_p, half.test.y)
    looked = gradcam.heat_maps(saved, half.test.x[mistakes], predicted[mistakes])
    write_npz(artifact("gradcam", stage), {"row": mistakes, "heat": looked})
    record = {
        "trainable_parameters": network.trainable_parameters(model),
        "test_accuracy": float((predicted == half.test.y).mean()),
        "test_loss": float(-log_p[np.arange(len(predicted)), half.test.y].mean()),
        # Ctrl-C ends the process that is asked, but TensorFlow may keep it from ending this one.
        "set_up": _set_up(threads, cpu.result() or cpuinfo.get_cpu_info()),
        "sha256_of": {kind: sha256(artifact(kind, stage).read_bytes()) for kind in KINDS},
    }
    write_sealed(artifact("record", stage), record)
    write_sealed(artifact("timing", stage), {"train_seconds": seconds})
    print(f"{stage}: test accuracy {record['test_accuracy']:.4f}, test loss {record['test_loss']:.4f}, {seconds:.1f} s")


def log_probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Logarithms of the model's probabilities for images (N, H, W, C): float64 (N, classes).

    From the inputs of the softmax, as Keras's loss is: a probability that float32 rounds to 0 still has a logarithm.
    """
    hidden = network.part(model, 0, -1)
    kernel, bias = (weight.astype(np.float64) for weight in model.layers[-1].get_weights())
    size = evaluation_batch(x.shape[1:])
    starts = range(0, len(x), size)
    last = np.concatenate([hidden.predict_on_batch(x[start : start + size]) for start in starts])
    return log_softmax(last.astype(np.float64) @ kernel + bias, axis=1)


def _set_up(threads: int, cpu: dict) -> dict:
    """What the bits of the result depend on besides the inputs."""
    vectors = [flag for flag in ("amx_tile", "avx512f", "avx2", "avx", "asimd") if flag in cpu.get("flags", [])]
    return {
        "cpu": cpu.get("brand_raw", "unknown"),
        "instruction_set": f"{cpu.get('arch', 'unknown')} {' '.join(vectors)}".strip(),
        "threads": threads,
        "python": platform.python_version(),
        **{package: version(package) for package in ("tensorflow", "keras", "numpy")},
    }
