"""Evaluate a trained model and save its outputs."""

import keras
import numpy as np
import pandas as pd
from scipy.special import log_softmax

from stages.shared.errors import UserError
from stages.shared.files import MODELS, sha256, stage_folder, timing_file, write_atomic, write_json
from stages.shared.npz import write_npz
from stages.shared.tasks import Task
from stages.training import gradcam, model_files, runtime
from stages.training.fit import History, write_history
from stages.training.freeze import count_trainable, submodel
from stages.training.input_pipeline import evaluation_batch_size

FILES = ("history.csv", "predictions.csv", "gradcam.npz")


def evaluate_and_save(stage: str, model: keras.Model, task: Task, history: History, threads: int) -> None:
    """Save the model, evaluate the saved file on the test images, and save what `report` reads.

    Raises `UserError` if predictions are not numbers, or a file cannot be written.
    """
    folder = stage_folder(stage)
    model_files.save(model, MODELS / f"{stage}.keras", task.class_names)
    saved = model_files.load(MODELS / f"{stage}.keras")
    log_p = log_probabilities(saved, task.test.x)
    if not np.isfinite(log_p).all():
        raise UserError(f"{stage}: predictions that are not numbers; try a smaller {stage}.learning_rate")
    predicted = log_p.argmax(axis=1)
    names = np.array(task.class_names)
    predictions = {
        "actual": names[task.test.y],
        "predicted": names[predicted],
        "probability": np.exp(log_p.max(axis=1)),
        "label": task.test.y,  # the order of the classes, for `dvc plots`
    }
    write_history(stage, history.curves)
    table = pd.DataFrame(predictions).to_csv(index=False, float_format="%.6f")
    write_atomic(folder / "predictions.csv", table.encode())
    mistakes = gradcam.most_confident_mistakes(log_p, task.test.y)
    heat = gradcam.heat_maps(saved, task.test.x[mistakes], predicted[mistakes])
    write_npz(folder / "gradcam.npz", {"row": mistakes, "heat": heat})
    record = {
        "trainable_parameters": count_trainable(model),
        "test_accuracy": float((predicted == task.test.y).mean()),
        "test_loss": float(-log_p[np.arange(len(predicted)), task.test.y].mean()),
        "environment": runtime.describe_environment(threads),
        "sha256_of": {name: sha256((folder / name).read_bytes()) for name in FILES},
    }
    write_json(folder / "record.json", record)
    write_json(timing_file(stage), {"train_seconds": history.seconds})
    accuracy, loss = record["test_accuracy"], record["test_loss"]
    print(f"{stage}: test accuracy {accuracy:.4f}, test loss {loss:.4f}, {history.seconds:.1f} s")


def log_probabilities(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Return the logarithms of the model's probabilities for images (N, H, W, C): float64 (N, classes).

    They come from the inputs of the softmax, as Keras's loss does: a probability that float32 rounds to 0 still has a
    logarithm.
    """
    hidden = submodel(model, 0, -1)
    kernel, bias = (weight.astype(np.float64) for weight in model.layers[-1].get_weights())
    size = evaluation_batch_size(x.shape[1:])
    starts = range(0, len(x), size)
    last = np.concatenate([hidden.predict_on_batch(x[start : start + size]) for start in starts])
    return log_softmax(last.astype(np.float64) @ kernel + bias, axis=1)
