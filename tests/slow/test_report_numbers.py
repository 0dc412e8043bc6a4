"""Every number of the report, computed again from the predictions alone, with scikit-learn and NumPy."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from stages.shared.files import stage_folder

OTHERS = ("train_accuracy", "trainable_parameters", "kept_epoch", "train_seconds")  # do not come from predictions


def read(stage: str, name: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pd.read_csv(stage_folder(stage) / f"{name}.csv")
    return table, (table["actual"] == table["predicted"]).to_numpy()


def wilson(hits, images) -> list[float]:
    z = 1.959964
    root = z * np.sqrt(hits * (images - hits) / max(images, 1) + z**2 / 4)
    return [(hits + z**2 / 2 - root) / (images + z**2), (hits + z**2 / 2 + root) / (images + z**2)]


def gain(right: np.ndarray, control: np.ndarray) -> dict:
    """McNemar's exact test, and Clopper and Pearson's interval: where a binomial tail has 2.5%."""
    first, second, grid = int((right & ~control).sum()), int((~right & control).sum()), np.linspace(0, 1, 100_001)
    n = first + second
    terms = np.array([comb(n, k) * grid**k * (1 - grid) ** (n - k) for k in range(n + 1)])
    low = np.interp(0.025, terms[first:].sum(axis=0), grid)
    high = np.interp(-0.025, -terms[: first + 1].sum(axis=0), grid)
    p = min(1, 2 * sum(comb(n, k) for k in range(min(first, second) + 1)) / 2**n)
    ends = [(2 * share - 1) * n / len(right) for share in (low, high)]
    return dict(zip(("difference", "low", "high", "p"), ((first - second) / len(right), *ends, p), strict=True)) | {
        "only_first": first, "only_second": second,
    }  # fmt: skip


def by_class(y: pd.Series, predicted: pd.Series, names: list[str]) -> dict:
    rows = {}
    scores = sk.precision_recall_fscore_support(y, predicted, labels=names, zero_division=np.nan)
    for name, precision, recall, f1, images in zip(names, *scores, strict=True):
        of, taken = y == name, predicted == name
        hits = (of & taken).sum()
        ends = {"precision": wilson(hits, taken.sum()), "recall": wilson(hits, images)}
        ends["f1"] = [2 * share / (1 + share) for share in wilson(hits, (of | taken).sum())]
        rows[name] = {"images": images, "precision": precision if any(taken) else None, "recall": recall, "f1": f1}
        rows[name] |= {f"{score}_{end}": ends[score][i] for score in ends for i, end in enumerate(("low", "high"))}
    return rows


def recompute(stage: str) -> dict:
    (table, right), (validation, valid) = read(stage, "predictions"), read(stage, "validation_predictions")
    names = [column[3:] for column in table if column.startswith("p: ")]
    y, predicted, confidence = (table[column] for column in ("actual", "predicted", "probability"))
    p = table.iloc[:, 4:].to_numpy()
    label, bins = [names.index(name) for name in y], np.ceil(confidence * 15)
    assert ([names[i] for i in p.argmax(axis=1)], p.max(axis=1).tolist()) == (predicted.tolist(), confidence.tolist())
    above = ((t, validation["probability"] >= t) for t in [0, *sorted(validation["probability"])])
    threshold = next(t for t, answered in above if valid[answered].mean() >= 0.95)
    sure = confidence >= threshold
    found = {
        "test_accuracy": sk.accuracy_score(y, predicted),
        "test_accuracy_interval": wilson(right.sum(), len(y)),
        "test_loss": sk.log_loss(label, p / p.sum(axis=1, keepdims=True), labels=range(len(names))),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "macro_f1": sk.f1_score(y, predicted, average="macro"),
        "mean_confidence": confidence.mean(),
        "calibration_error": sum(abs((confidence - right)[bins == b].sum()) for b in set(bins)) / len(y),
        "validation_accuracy": valid.mean(),
        "selective": {"threshold": threshold, "answered": sure.mean(), "accuracy": right[sure].mean()},
        "classes": by_class(y, predicted, names),
        "transfer_gain": None,
    }
    found["selective"]["interval"] = wilson(right[sure].sum(), sure.sum())
    for k in (k for k in (2, 5) if k < len(names)):
        found[f"top_{k}_accuracy"] = sk.top_k_accuracy_score(label, p, k=k, labels=range(len(names)))
    if stage == "finetune_fc":
        control = read(stage, "control_predictions")[1]
        found |= {"control_test_accuracy": control.mean(), "transfer_gain": gain(right, control)}
    return found


def flat(value, key="") -> dict:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        return {} if value is None else {key: value}
    return {k: v for name, v in inner for k, v in flat(v, f"{key}.{name}").items()}


def test_every_number_follows_from_the_predictions(params, run):
    stages = ("pretrain", "finetune_output", "finetune_fc")
    changes = {f"{stage}.epochs": 15 for stage in stages} | {f"{stage}.learning_rate": 0.01 for stage in stages[1:]}
    changes |= {"data.source_classes": list(range(6)), "data.target_classes": [6, 7, 8, 9]}
    changes |= {f"{stage}.head": "reset" for stage in stages[1:]} | {"finetune_output.control": False}
    params(**changes, **{"data.validation_fraction": 0.2})
    run("prepare", *stages, "report")
    metrics, details = (json.loads(Path(f"reports/{name}.json").read_text()) for name in ("metrics", "details"))
    markdown = Path("reports/report.md").read_text()
    for stage in stages:
        found, expected = metrics[stage] | details[stage], recompute(stage)
        assert metrics[stage].get("transfer_gain") == (expected["transfer_gain"] or {}).get("difference")
        compared = flat({key: value for key, value in found.items() if key not in OTHERS})
        assert compared == pytest.approx(flat(expected), rel=1e-4)
        percent = {key: f"{100 * value:.1f}%" for key, value in flat(expected).items() if isinstance(value, float)}
        tops = [percent.get(f".top_{k}_accuracy", "") for k in (2, 5)]  # no top-5 of four classes
        cells = [percent[".test_accuracy"], *tops, percent[".balanced_accuracy"], percent[".macro_f1"]]
        assert f"\n| {stage} | {' | '.join(cells)} |\n" in markdown
        for name, row in expected["classes"].items():
            cells = []
            for key in (f".classes.{name}.{score}" for score in ("recall", "precision", "f1")):
                interval = f" ({percent[f'{key}_low']} to {percent[f'{key}_high']})"
                cells.append(percent[key] + interval if key in percent else "none")  # never predicted
            assert f"\n| {name} | {stage} | {row['images']} | {' | '.join(cells)} |\n" in markdown
        interval = f"{percent['.test_accuracy_interval.0']} to {percent['.test_accuracy_interval.1']}"
        cells = [percent[".test_accuracy"], interval, percent.get(".control_test_accuracy", "")]
        cells.append(f"{100 * metrics[stage]['transfer_gain']:+.1f}" if "transfer_gain" in metrics[stage] else "")
        assert f" | {' | '.join(cells)} |\n" in markdown
