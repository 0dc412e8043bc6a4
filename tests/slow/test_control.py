"""The control of a fine-tuning: what `pretrain.epochs=0` gives, resumed and switched off like the rest."""

import itertools
import shutil
from pathlib import Path

import keras
import pandas as pd
import pytest

from stages.shared.files import read_json, stage_folder
from stages.training import checkpoint
from stages.training.checkpoint import Checkpoint
from stages.training.control import random_weights_of, same_weights

FOLDER = stage_folder("finetune_fc")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("trainable", [["fc2", "output"], ["conv1", "conv2", "fc1", "fc2", "output"]])
def test_control_is_the_same_fine_tuning_without_pretraining(params, run, trainable):
    params(**{"finetune_fc.trainable": trainable})
    run("prepare", "pretrain", "finetune_fc")
    found, record = contents(FOLDER), read_json(FOLDER / "record.json")
    params(**{"pretrain.epochs": 0})
    run("pretrain", "finetune_fc")
    own = read_json(FOLDER / "record.json")
    short = pd.read_csv(FOLDER / "predictions.csv", dtype=str)[["image", "actual", "predicted", "probability"]]
    assert short.to_csv(index=False).encode() == found["control_predictions.csv"]
    assert (FOLDER / "predictions.csv").read_bytes() != found["predictions.csv"]
    assert (FOLDER / "history.csv").read_bytes() == found["control_history.csv"]
    assert {key: own[key] for key in record["control"]} == record["control"]
    assert "control" not in own  # fine-tuning is its own control


@pytest.mark.parametrize("last", [1, 2])  # epoch, from 0, of three
def test_interrupted_control_resumes_and_ends_with_the_same_bytes(params, run, monkeypatch, capsys, last):
    monkeypatch.setattr(checkpoint, "INTERVAL", 0)
    monkeypatch.setattr(checkpoint, "MAX_SHARE", 0)
    run("prepare", "pretrain", "finetune_fc")
    found = contents(FOLDER)
    end, epochs = Checkpoint.on_epoch_end, itertools.count()

    def interrupt(callback, epoch, logs=None):
        end(callback, epoch, logs)
        if next(epochs) == 3 + last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Checkpoint, "on_epoch_end", interrupt)
        run("finetune_fc")
    capsys.readouterr()
    shutil.rmtree(FOLDER)  # as DVC does
    run("finetune_fc")
    assert f"finetune_fc: resuming after epoch {last + 1}" in capsys.readouterr().out
    assert contents(FOLDER) == found
    assert not list(checkpoint.FOLDER.iterdir())


def test_control_of_a_backbone_has_the_backbone_with_random_weights(params, run):
    params(**{"pretrain.epochs": 1, "data.image_size": 32, "model.backbone": "MobileNetV3Small"})
    run("prepare", "pretrain")
    again = random_weights_of(keras.models.load_model("models/pretrain.keras"), seed=1)
    params(**{"pretrain.epochs": 0})
    run("pretrain")
    assert same_weights(again, keras.models.load_model("models/pretrain.keras"))
