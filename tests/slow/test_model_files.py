"""Model files: which any Keras user can load, saved beside the caller's model, and damaged ones refused."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from stages.shared.errors import UserError
from stages.training import model_files, network

pytestmark = pytest.mark.usefixtures("set_up")


@pytest.fixture
def x(tiny_dataset):
    return tiny_dataset["x_test"]


@pytest.fixture
def model(tiny, x):
    """A tiny network of which two layers are trained."""
    model = network.build((8, 8, 3), 5, tiny.model, x)
    network.freeze_all_but(model, ["fc2", "output"])
    return model


def test_saving_does_not_recompile_the_callers_model(model, x, workspace):
    y = np.zeros(len(x), int)
    model.compile("adam", loss="sparse_categorical_crossentropy", loss_weights=[0.5])
    model.fit(x, y, verbose=0)
    optimizer, loss, fitted = model.optimizer, model.loss, model.evaluate(x, y, verbose=0)
    model_files.save(model, workspace / "m.keras", ["a", "b"])
    assert model.optimizer is optimizer
    assert model.loss is loss
    assert model.evaluate(x, y, verbose=0) == fitted


PLAIN_KERAS = """
import json, sys
sys.modules["stages"] = None  # importing it fails
import keras, numpy as np
arrays, model = np.load(sys.argv[1]), keras.models.load_model(sys.argv[2])
x, y = arrays["x_test"], arrays["y_test"] % 5
print(json.dumps([*model.evaluate(x, y, verbose=0), model.predict(x, verbose=0).tolist()]))
"""


def test_models_open_in_plain_keras_elsewhere(model, tiny, x, tiny_dataset, workspace):
    model_files.save(model, workspace / "m.keras", ["a", "b"])
    files = [str(workspace / name) for name in (tiny.data.path, "m.keras")]
    command = [sys.executable, "-W", "error::UserWarning", "-c", PLAIN_KERAS, *files]
    answer = subprocess.run(command, cwd="/", env={}, check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    loss, accuracy, predicted = json.loads(answer.stdout)
    expected, y = model.predict(x, verbose=0), tiny_dataset["y_test"] % 5
    assert np.allclose(predicted, expected, atol=1e-6)
    assert accuracy == pytest.approx(keras.metrics.sparse_categorical_accuracy(y, expected).numpy().mean())
    assert loss == pytest.approx(keras.losses.sparse_categorical_crossentropy(y, expected).numpy().mean(), rel=1e-4)


def test_missing_or_damaged_model_is_refused_in_one_line(model, workspace):
    """Flipped bits: test_accidents.py."""
    file = workspace / "m.keras"
    model_files.save(model, file, ["a", "b"])
    whole = file.read_bytes()
    for damaged in (None, b"", whole[: len(whole) // 2], whole[:-1], b"version https://example.org\n"):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^[^\n]*m\.keras: [^\n]*dvc repro[^\n]*$"):
            model_files.load(file)
