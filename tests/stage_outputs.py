"""Made-up outputs of the training stages."""

import numpy as np
import pandas as pd

from stages.predictions import FORMAT, prediction_table
from stages.reporting.results import ModelResult, Results
from stages.shared.files import sha256, stage_folder, timing_file, write_atomic, write_json
from stages.shared.npz import write_npz
from stages.shared.tasks import Split, Task, write_task

STAGES = ["pretrain", "finetune_output", "finetune_fc"]
WEIGHTS = {"pretrain": 1000, "finetune_output": 50, "finetune_fc": 200, "finetune_third": 300}
SOURCE, TARGET = ["ant", "bee", "cow"], ["fox", "gnu", "hen"]
UNTRAINED = {"epochs": 0, "seconds": 0.0}


def make_task(names, train=90, validation=0, test=60, channels=3) -> Task:
    splits = {"x_train": train, "x_validation": validation, "x_test": test}
    images = [np.random.default_rng(n).integers(0, 256, (n, 6, 6, channels), "u1") for n in splits.values()]
    file_names = [np.array([f"{name}[{row}]" for row in range(n)], str) for name, n in splits.items()]
    return Task(
        "tiny", names, *(Split(x, np.arange(len(x)) % len(names), f) for x, f in zip(images, file_names, strict=True))
    )


def make_predictions(task, wrong, split="test") -> pd.DataFrame:
    """Predict the next class for the `wrong` images; the probability of the predicted class grows with the row."""
    images, classes = getattr(task, split), len(task.class_names)
    predicted = (images.y + np.isin(np.arange(len(images.y)), wrong)) % classes
    p = np.random.default_rng(0).uniform(0.9, 1, (len(images.y), classes))
    p[np.arange(len(p)), predicted] = 0
    confidence = np.linspace(0.4, 1, len(p))[:, None]
    p *= (1 - confidence) / p.sum(axis=1, keepdims=True)
    np.put_along_axis(p, predicted[:, None], confidence, axis=1)
    return prediction_table(images.names, p, task.class_names, images.y)


def make_result(stage, task, wrong=range(10), epochs=3, seconds=6.0, cpu="a CPU", control=None) -> ModelResult:
    """Make a model with some `wrong` test images, which fits the better the more weights it trains.

    `control`: the wrong ones of its control, if it has one.
    """
    predictions = make_predictions(task, wrong)
    rows = [[epoch + 1, 0.5 + epoch / 10 + WEIGHTS[stage] / 1e6, 1 / (epoch + 1), 0.5, 0.9] for epoch in range(epochs)]
    history = pd.DataFrame(rows, columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"], dtype=float)
    record = {"trainable_parameters": WEIGHTS[stage], "test_accuracy": 1 - len(wrong) / len(task.test.y)}
    of_label = predictions.to_numpy()[np.arange(len(predictions)), 4 + task.test.y].astype(float)
    loss = -np.log(np.maximum(of_label, np.finfo(float).eps)).mean()
    record |= {"test_loss": loss, "environment": {"cpu": cpu, "threads": 2}}
    mistakes = np.array(sorted(wrong, reverse=True)[:8], int)
    heat = np.tile(np.float32([[0, 1], [0, 0]]), (len(mistakes), 1, 1))
    if control is not None:
        record["control"] = {"test_accuracy": 1 - len(control) / len(task.test.y)}
    table = None if control is None else make_predictions(task, control)
    validation = make_predictions(task, range(2), "validation") if len(task.validation.y) else None
    return ModelResult(stage, task, history, predictions, mistakes, heat, record, seconds, table, validation)


def make_results(source=SOURCE, target=TARGET, sizes=None, **changes) -> Results:
    """Make results of three stages, and of others that `changes` names; it holds arguments of `make_result`."""
    tasks = make_task(source, **(sizes or {})), make_task(target, **(sizes or {}))
    names = dict.fromkeys([*STAGES, *changes])
    first, *tuned = (make_result(name, tasks[name != "pretrain"], **changes.get(name, {})) for name in names)
    return Results(first, tuned)


def write(results: Results) -> None:
    """Write all that the stages write."""
    write_task("source", results.source.task)
    write_task("target", results.tuned[0].task)
    for r in results.all:
        folder = stage_folder(r.stage)
        tables = {"history": r.history, "predictions": r.predictions, "control_predictions": r.control}
        tables["validation_predictions"] = r.validation
        for name, table in tables.items():
            if table is not None:
                write_atomic(folder / f"{name}.csv", table.to_csv(index=False, float_format=FORMAT).encode())
        write_npz(folder / "gradcam.npz", {"row": r.mistakes, "heat": r.heat})
        sums = {path.name: sha256(path.read_bytes()) for path in folder.glob("*.*") if path.name != "record.json"}
        write_json(folder / "record.json", r.record | {"sha256_of": sums})
        write_json(timing_file(r.stage), {"train_seconds": r.train_seconds})
