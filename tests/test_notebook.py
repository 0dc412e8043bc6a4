"""The default recipe is the notebook's: on one machine, with one seed, the same learning curves."""

import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import yaml

from repository import ROOT, default_params

NOTEBOOK = runpy.run_path(str(ROOT / "benchmarks/notebook.py"))
EPOCHS = 2


@pytest.fixture
def params(tmp_path, monkeypatch):
    """The committed settings but for the data, the digits, and the number of epochs."""
    monkeypatch.chdir(tmp_path)
    params = default_params()
    params["data"]["path"] = str(ROOT / "data/raw/digits.npz")
    for stage in ("pretrain", "finetune_output", "finetune_fc"):
        params[stage]["epochs"] = EPOCHS
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return params


def notebooks_curves(params: dict) -> dict[str, pd.DataFrame]:
    """The learning curves of the notebook's code, seeded anew before each model as the stages are."""
    curves = []
    fit = keras.Sequential.fit

    def fit_seeded(model, *arguments, **options):
        history = fit(model, *arguments, **options | {"verbose": 0})
        curves.append(pd.DataFrame(history.history))
        return history

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(keras.Sequential, "fit", fit_seeded)
        source, target = NOTEBOOK["halves"](params["data"]["path"])
        keras.utils.set_random_seed(params["seed"])
        model = NOTEBOOK["network"](source[0].shape[1:])
        NOTEBOOK["train"](model, source, EPOCHS)
        for layers in ([len(model.layers) - 1], [-3, -1]):
            keras.utils.set_random_seed(params["seed"])
            NOTEBOOK["fine_tune"](model, layers, target, EPOCHS)
    return dict(zip(("pretrain", "finetune_output", "finetune_fc"), curves, strict=True))


def test_learning_curves_are_the_notebooks(params):
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # other tests set TensorFlow's threads in this process
        expected = fresh.submit(notebooks_curves, params).result()
    for stage in (["prepare"], ["pretrain"], ["finetune", "finetune_output"], ["finetune", "finetune_fc"]):
        command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    for stage, curves in expected.items():
        ours = pd.read_csv(f"reports/history/{stage}.csv")[curves.columns]
        assert len(ours) == EPOCHS
        assert np.allclose(ours, curves, rtol=1e-4), stage  # training: 0 where this was written
    parameters = [json.loads(Path(f"reports/record/{s}.json").read_text())["trainable_parameters"] for s in expected]
    assert parameters == [1_633_733, 325, 8_581]
