"""The default recipe is the notebook's: the same network and, with one seed and order, the same learning curves."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest

from repository import ROOT
from stages import finetune, prepare, pretrain
from stages.settings import Settings
from stages.shared.files import read_sealed
from tiny import TINY

NOTEBOOK = runpy.run_path(str(ROOT / "benchmarks/notebook.py"))
DIGITS = str(ROOT / "data/raw/digits.npz")
EPOCHS = 2
COUNTS = {"pretrain": 1_633_733, "finetune_output": 325, "finetune_fc": 8_581}  # trainable parameters


def test_learning_curves_and_results_are_the_notebooks(params, monkeypatch):
    assert {Settings().pretrain.epochs, Settings().finetune_output.epochs, Settings().finetune_fc.epochs} == {10}
    few = {f"{stage}.epochs": EPOCHS for stage in COUNTS}
    settings = params(**few, **{"data.path": DIGITS, "threads": TINY["threads"]})  # all else are the defaults
    prepare.main()
    pretrain.main()
    for stage in ("finetune_output", "finetune_fc"):
        monkeypatch.setattr(sys, "argv", ["finetune", stage])
        finetune.main()

    curves, results, fit = [], [], keras.Sequential.fit

    def fit_in_the_pipelines_order(model, x, y, epochs, **options):  # the notebook's own has no seed
        history = []
        for epoch in range(epochs):
            rows = np.random.default_rng([settings.seed, epoch]).permutation(len(x))
            end = {"shuffle": False, "initial_epoch": epoch, "epochs": epoch + 1}
            history.append(pd.DataFrame(fit(model, x[rows], y[rows], **options, **end).history))
        curves.append(pd.concat(history, ignore_index=True))
        return SimpleNamespace(history=curves[-1].to_dict("list"))

    monkeypatch.setattr(keras.Sequential, "fit", fit_in_the_pipelines_order)
    source, target = NOTEBOOK["halves"](DIGITS)
    keras.utils.set_random_seed(settings.seed)
    model = NOTEBOOK["network"](source[0].shape[1:])
    results.append(NOTEBOOK["train"](model, source, EPOCHS))
    for layers in ([len(model.layers) - 1], [-3, -1]):
        keras.utils.set_random_seed(settings.seed)  # before each model, as the stages do
        results.append(NOTEBOOK["fine_tune"](model, layers, target, EPOCHS))

    for stage, theirs, result in zip(COUNTS, curves, results, strict=True):
        ours = pd.read_csv(f"reports/history/{stage}.csv")[theirs.columns]
        assert len(ours) == EPOCHS
        assert np.allclose(ours, theirs, rtol=1e-4, atol=0), stage  # training: 0 where this was written
        record = read_sealed(Path(f"reports/record/{stage}.json"))
        assert record["trainable_parameters"] == COUNTS[stage]
        for key in ("test_accuracy", "test_loss"):
            assert record[key] == pytest.approx(result[key], rel=1e-4), stage
