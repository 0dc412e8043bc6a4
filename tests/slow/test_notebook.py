"""The default recipe is the notebook's: equal seeds and image orders give equal learning curves."""

import runpy
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from repository import ROOT
from stages.images.dataset import KEYS
from stages.reporting.notebook import PUBLISHED
from stages.settings import Settings
from stages.shared.files import read_json

NOTEBOOK = runpy.run_path(str(ROOT / "benchmarks/notebook.py"))
EPOCHS = 2


def run_notebook(images: str, monkeypatch, seed: int) -> tuple[list[pd.DataFrame], list[dict]]:
    """Run the notebook's code with the pipeline's seed and image order; return curves and results of its models."""
    fit, curves = keras.Sequential.fit, []

    def fit_in_order(model, x, y, epochs, **options):
        logs = []
        for epoch in range(epochs):
            rows = np.random.default_rng([seed, epoch]).permutation(len(x))
            options |= {"shuffle": False, "initial_epoch": epoch, "epochs": epoch + 1}
            logs.append(pd.DataFrame(fit(model, x[rows], y[rows], **options).history))
        curves.append(pd.concat(logs, ignore_index=True))

    monkeypatch.setattr(keras.Sequential, "fit", fit_in_order)
    source, target = NOTEBOOK["halves"](images)
    keras.utils.set_random_seed(seed)
    model = NOTEBOOK["network"](source[0].shape[1:])
    results = [NOTEBOOK["train"](model, source, EPOCHS)]
    for layers in ([len(model.layers) - 1], [-3, -1]):
        keras.utils.set_random_seed(seed)  # as each stage does
        results.append(NOTEBOOK["fine_tune"](model, layers, target, EPOCHS))
    return curves, results


def test_learning_curves_and_results_are_the_notebooks(params, run, monkeypatch):
    assert {Settings().pretrain.epochs, Settings().finetune_output.epochs, Settings().finetune_fc.epochs} == {10}
    with np.load(ROOT / "data/raw/mnist.npz") as mnist:
        np.savez("part.npz", **{key: mnist[key][::4] for key in KEYS})
    epochs = {f"{stage}.epochs": EPOCHS for stage in PUBLISHED}
    defaults = Settings().model_dump() | {"threads": 1}
    settings = params(**defaults, **epochs, **{"data.path": "part.npz"})
    run("prepare", *PUBLISHED)
    for stage, theirs, result in zip(PUBLISHED, *run_notebook("part.npz", monkeypatch, settings.seed), strict=True):
        ours = pd.read_csv(f"reports/{stage}/history.csv")[theirs.columns]
        assert len(ours) == EPOCHS
        assert np.allclose(ours, theirs, rtol=1e-4, atol=0), stage
        record = read_json(Path(f"reports/{stage}/record.json"))
        assert record["trainable_parameters"] == PUBLISHED[stage]["parameters"]
        for key in ("test_accuracy", "test_loss"):
            assert record[key] == pytest.approx(result[key], rel=1e-4), stage
