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
    model_files.save(model, workspace / "m.keras")
    assert model.optimizer is optimizer
    assert model.loss is loss
    assert model.evaluate(x, y, verbose=0) == fitted


def test_loaded_model_is_the_saved_one_with_what_is_frozen(model, x, workspace):
    model_files.save(model, workspace / "m.keras")
    loaded = model_files.load(workspace / "m.keras")
    assert [layer.name for layer in loaded.layers if layer.trainable] == ["fc2", "output"]
    assert np.array_equal(loaded(x), model(x))
    assert not loaded.compiled


PLAIN_KERAS = """
import json, sys
sys.modules["stages"] = None  # importing it fails
import keras, numpy as np
arrays, model = np.load(sys.argv[1]), keras.models.load_model(sys.argv[2])
x, y = arrays["x_test"], arrays["y_test"] % 5
print(json.dumps([*model.evaluate(x, y, verbose=0), model.predict(x, verbose=0).tolist()]))
"""


def test_models_open_in_plain_keras_elsewhere(model, tiny, x, tiny_dataset, workspace):
    model_files.save(model, workspace / "m.keras")
    files = [str(workspace / name) for name in (tiny.data.path, "m.keras")]
    command = [sys.executable, "-W", "error::UserWarning", "-c", PLAIN_KERAS, *files]
    answer = subprocess.run(command, cwd="/", env={}, check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    loss, accuracy, predicted = json.loads(answer.stdout)
    expected, y = model.predict(x, verbose=0), tiny_dataset["y_test"] % 5
    assert np.allclose(predicted, expected, atol=1e-6)
    assert accuracy == pytest.approx(keras.metrics.sparse_categorical_accuracy(y, expected).numpy().mean())
    assert loss == pytest.approx(keras.losses.sparse_categorical_crossentropy(y, expected).numpy().mean(), rel=1e-4)


def damages(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "empty": b"",
        "truncated": content[:middle],
        "without its last byte": content[:-1],
        "changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "no model": b"version https://example.org\n",
    }


@pytest.mark.parametrize("damage", ["missing", *damages(b"12")])
def test_damaged_model_is_refused_in_one_line(model, workspace, damage):
    file = workspace / "m.keras"
    if damage != "missing":
        model_files.save(model, file)
        file.write_bytes(damages(file.read_bytes())[damage])
    with pytest.raises(UserError, match=r"^[^\n]*m\.keras: [^\n]*dvc repro[^\n]*$"):
        model_files.load(file)
