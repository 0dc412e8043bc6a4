"""The outputs of a training stage: predictions, record and heat maps."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from stages.predictions import accuracy_by_threshold
from stages.shared.errors import UserError
from stages.shared.files import read_json
from stages.shared.npz import read_npz
from stages.training import gradcam
from stages.training.checkpoint import CURVES
from stages.training.evaluate import evaluate_and_save
from stages.training.fit import History
from stages.training.model import build_model

pytestmark = pytest.mark.usefixtures("configured")
FOLDER = Path("reports/pretrain")


@pytest.fixture
def task(tasks):
    return tasks["source"]


@pytest.fixture
def model(tiny, task):
    return build_model((8, 8, 3), 5, tiny.model, task.train.x)


def evaluate(model, task):
    """Save the outputs of `pretrain` for a model, and read its predictions."""
    history = History(pd.DataFrame(columns=["epoch", *CURVES]), seconds=1.5)
    evaluate_and_save("pretrain", model, task, history)
    return pd.read_csv(FOLDER / "predictions.csv")


@pytest.mark.parametrize("overconfidence", [1, 1000])
def test_predictions_and_record_agree_with_keras(model, task, overconfidence):
    model.layers[-1].kernel.assign(model.layers[-1].kernel * overconfidence)
    table = evaluate(model, task)
    saved = keras.models.load_model("models/pretrain.keras")
    loss, accuracy = saved.evaluate(task.test.x, task.test.y, verbose=0)
    record = read_json(FOLDER / "record.json")
    assert record["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert record["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert (record["environment"]["threads"], record["environment"]["tensorflow"]) == (1, tf.__version__)
    assert read_json(Path("reports/timing/pretrain.json")) == {"train_seconds": 1.5}
    expected = saved.predict(task.test.x, verbose=0)
    classes = [f"p: {name}" for name in task.class_names]
    assert list(table.columns) == ["image", "actual", "predicted", "probability", *classes]
    assert table["image"].tolist() == task.test.names.tolist()
    assert np.allclose(table[classes], expected, atol=2e-6)
    assert table["actual"].tolist() == [task.class_names[label] for label in task.test.y]
    assert table["predicted"].tolist() == [task.class_names[label] for label in expected.argmax(axis=1)]
    assert table["probability"].to_numpy() == pytest.approx(expected.max(axis=1), abs=2e-6)


def test_thresholds_of_validation_images_are_in_the_models_file_without_them_it_keeps_its_bytes(model, task):
    evaluate(model, task)
    before = Path("models/pretrain.keras").read_bytes()
    evaluate(model, replace(task, validation=task.train))
    with zipfile.ZipFile("models/pretrain.keras") as archive:
        metadata = json.loads(archive.read("metadata.json"))
    table = pd.read_csv(FOLDER / "validation_predictions.csv")
    assert table["image"].tolist() == task.train.names.tolist()
    curve = accuracy_by_threshold(table["probability"].to_numpy(), (table["actual"] == table["predicted"]).to_numpy())
    assert metadata["validation"] == curve | {"images": len(task.train.y)}
    assert metadata["class_names"] == task.class_names
    assert keras.models.load_model("models/pretrain.keras").name == model.name
    evaluate(model, task)
    assert Path("models/pretrain.keras").read_bytes() == before
    assert b"validation" not in before


def test_predictions_that_are_not_numbers_are_refused_in_one_line(model, task):
    model.layers[-1].bias.assign([np.nan] * 5)
    with pytest.raises(UserError, match=r"^[^\n]*pretrain\.learning_rate[^\n]*$"):
        evaluate(model, task)
    assert not (FOLDER / "record.json").exists()


def test_heat_maps_are_of_the_most_confident_mistakes(model, task):
    table = evaluate(model, task)
    wrong = table[table["actual"] != table["predicted"]]
    assert len(wrong) > gradcam.EXAMPLES
    saved = read_npz(FOLDER / "gradcam.npz", ("row", "heat"))
    most_confident = wrong.sort_values("probability", ascending=False, kind="stable")[: gradcam.EXAMPLES]
    assert saved["row"].tolist() == most_confident.index.tolist()
    assert saved["heat"].shape == (gradcam.EXAMPLES, 4, 4)
    predicted = np.array([task.class_names.index(name) for name in table["predicted"]])
    evaluate(model, replace(task, test=replace(task.test, y=predicted)))  # no mistakes
    assert [len(array) for array in read_npz(FOLDER / "gradcam.npz", ("row", "heat")).values()] == [0, 0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("weight", [1e-4, 1e4])  # probabilities near 0.5, or rounded to 1
def test_heat_map_shows_the_region_behind_a_class(policy, weight):
    """One channel sees light, one dark; light in one corner is evidence for class 1, dark in another for class 0."""
    image = keras.Input((8, 8, 1))
    conv = keras.layers.Conv2D(2, 1, dtype=policy)
    output = keras.layers.Dense(2, activation="softmax", dtype="float32")
    model = keras.Sequential([image, conv, keras.layers.Dropout(0.5), keras.layers.Flatten(dtype=policy), output])
    conv.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.array([0.0, 255.0])])
    kernel = np.zeros((8, 8, 2, 2))
    kernel[0, 0, 0, 1] = kernel[7, 7, 1, 0] = weight
    output.set_weights([kernel.reshape(-1, 2), np.zeros(2)])
    light = np.zeros((8, 8, 1), np.uint8)
    light[:3, :3] = 255
    dark_map, light_map = gradcam.heat_maps(model, np.stack([light, light]), np.array([0, 1]))
    assert np.array_equal(light_map, light[..., 0] / 255)
    assert np.array_equal(dark_map, 1 - light_map)
