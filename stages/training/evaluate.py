"""Evaluate a trained model and save its outputs."""

from typing import Any

import keras
import numpy as np
from scipy.special import log_softmax

from stages.predictions import FORMAT, accuracy_by_threshold, prediction_table
from stages.shared.errors import UserError
from stages.shared.files import MODELS, sha256, stage_folder, timing_file, write_atomic, write_json
from stages.shared.npz import write_npz
from stages.shared.tasks import Split, Task
from stages.training import gradcam, model_files, runtime
from stages.training.fit import History, write_history
from stages.training.freeze import submodel
from stages.training.input_pipeline import evaluation_batch_size


def evaluate_and_save(
    stage: str, model: keras.Model, task: Task, history: History, control: tuple[keras.Model, History] | None = None
) -> None:
    """Save the model, evaluate the saved file on the test images, and save what `report` reads.

    Raises `UserError` if predictions are not numbers, or a file cannot be written.
    """
    folder, file, names = stage_folder(stage), MODELS / f"{stage}.keras", task.class_names
    metadata: dict[str, Any] = {} if task.fit == "crop" else {"fit": task.fit}
    if len(task.validation.y):
        log_p = log_probabilities(model, task.validation.x)
        _save_predictions(stage, "validation_predictions.csv", log_p, task.validation, names)
        correct = log_p.argmax(axis=1) == task.validation.y
        curve = accuracy_by_threshold(np.exp(log_p.max(axis=1)), correct)
        metadata["validation"] = curve | {"images": len(correct)}
    model_files.save(model, file, names, **metadata)
    saved = model_files.load(file)
    write_history(stage, history.curves)
    log_p = log_probabilities(saved, task.test.x)
    weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    record: dict[str, Any] = {"trainable_parameters": weights}
    record |= _save_predictions(stage, "predictions.csv", log_p, task.test, names)
    mistakes = gradcam.most_confident_mistakes(log_p, task.test.y)
    heat = gradcam.heat_maps(saved, task.test.x[mistakes], log_p[mistakes].argmax(axis=1))
    write_npz(folder / "gradcam.npz", {"row": mistakes, "heat": heat})
    timing = {"train_seconds": history.seconds}
    if control:
        control_model, control_history = control
        write_history(stage, control_history.curves, "control_history.csv")
        log_p = log_probabilities(control_model, task.test.x)
        record["control"] = _save_predictions(stage, "control_predictions.csv", log_p, task.test, names)
        timing["control_seconds"] = control_history.seconds
    record["environment"] = runtime.describe_environment()
    record["sha256_of"] = {
        file.name: sha256(file.read_bytes()) for file in sorted(folder.iterdir()) if file.suffix in (".csv", ".npz")
    }
    write_json(folder / "record.json", record)
    write_json(timing_file(stage), timing)
    of_control = f" (control {record['control']['test_accuracy']:.1%})" if control else ""
    print(f"{stage}: test accuracy {record['test_accuracy']:.1%}{of_control}, {history.seconds:.1f} s")


def _save_predictions(
    stage: str, file: str, log_p: np.ndarray, split: Split, class_names: list[str]
) -> dict[str, float]:
    """Save the predictions of a split's images, of the control without all probabilities; return accuracy and loss."""
    if not np.isfinite(log_p).all():
        raise UserError(f"{stage}: predictions that are not numbers; try a smaller {stage}.learning_rate")
    table = prediction_table(split.names, np.exp(log_p), class_names, split.y)
    if file == "predictions.csv":  # what `dvc plots` embeds in its page; `label`: the order of the classes
        confusion = table[["actual", "predicted"]].assign(label=split.y)
        write_atomic(stage_folder(stage) / "confusion.csv", confusion.to_csv(index=False).encode())
    elif file == "control_predictions.csv":
        table = table[["image", "actual", "predicted", "probability"]]
    write_atomic(stage_folder(stage) / file, table.to_csv(index=False, float_format=FORMAT).encode())
    loss = -log_p[np.arange(len(log_p)), split.y].mean()
    return {"test_accuracy": float((log_p.argmax(axis=1) == split.y).mean()), "test_loss": float(loss)}


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
