"""Networks of keras.applications as the base: their weights, their features, and what is frozen."""

import functools
from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from keras.src.utils import file_utils

from stages.shared.errors import UserError
from stages.shared.files import sha256
from stages.shared.tasks import read_task
from stages.training.fit import fit
from stages.training.freeze import freeze_except, split_at_first_trained
from stages.training.model import build_model
from stages.training.weights import find_weights

pytestmark = pytest.mark.usefixtures("configured")
SIDE = 32  # pixels
CLASSES = {"data.source_classes": [0, 1, 2], "data.target_classes": [3, 4], "data.image_size": SIDE}
HEAD = ["fc1", "fc2", "output"]


@functools.cache
def reference(name: str) -> keras.Model:
    """Build a backbone with plain Keras, with weights that no initializer draws."""
    options = {"include_top": False, "weights": None, "input_shape": (SIDE, SIDE, 3), "pooling": "avg"}
    model = getattr(keras.applications, name)(**options)
    rng = np.random.default_rng(3)
    model.set_weights([weight * rng.uniform(0.9, 1.1) + 0.01 for weight in model.get_weights()])
    return model


@pytest.fixture
def eager():
    """Run without graphs, as tracing them takes most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def weights(stage: str) -> dict[str, list[np.ndarray]]:
    """Load a stage's weights by layer, as plain Keras does."""
    layers = keras.models.load_model(f"models/{stage}.keras").layers
    return {layer.name: layer.get_weights() for layer in layers if layer.weights}


def changed(before: dict, after: dict) -> list[str]:
    """List the layers whose weights differ, moving averages included."""
    same = {name: all(map(np.array_equal, before[name], after[name])) for name in after if name in before}
    return [name for name, equal in same.items() if not equal]


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "ResNet50V2", "ConvNeXtTiny"])
def test_frozen_features_are_those_that_keras_computes(params, tiny_dataset, tmp_path, name):
    own = reference(name)
    own.save_weights(file := tmp_path / "own.weights.h5")
    model = build_model((SIDE, SIDE, 3), 2, params(**{"model.backbone": name}).model, None, file)
    freeze_except(model, HEAD)
    body, head = split_at_first_trained(model)
    assert [layer.name for layer in head.layers if layer.weights] == HEAD  # the body has stochastic depth, too
    assert all(map(np.array_equal, body.get_weights(), own.get_weights()))
    x = tf.image.resize(tiny_dataset["x_test"][:20], (SIDE, SIDE)).numpy()
    assert np.allclose(head(body(x)), model(x), atol=1e-6)
    expected = own(keras.applications.resnet_v2.preprocess_input(x.copy()) if name == "ResNet50V2" else x)
    assert np.allclose(body(x, training=True), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_fine_tuning_the_last_block_or_all_layers_changes_these_only(params, run, eager, workspace, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
    reference("MobileNetV3Small").save_weights(file := workspace / "data/raw/small.weights.h5")
    values = {"name": "small", "urls": [f"https://example.org/{file.name}"], "sha256": sha256(file.read_bytes())}
    file.with_name("weights.yaml").write_text(yaml.safe_dump(values))
    epochs = {"pretrain.epochs": 0, "finetune_output.epochs": 1, "finetune_fc.epochs": 1}
    backbone = {"model.backbone": "MobileNetV3Small", "model.weights": "data/raw/weights.yaml"}
    trainable = {"finetune_output": ["backbone", *HEAD], "finetune_fc": ["last_block", "output"]}
    layers = {f"{stage}.trainable": names for stage, names in trainable.items()}
    params(**epochs, **backbone, **layers, **CLASSES)
    run("prepare", "pretrain", "finetune_output")
    tf.config.run_functions_eagerly(False)  # the cached features' short head is quickly traced
    run("finetune_fc", "report")
    before, tuned = weights("pretrain"), weights("finetune_output")
    own, ours = reference("MobileNetV3Small").get_weights(), [array for arrays in before.values() for array in arrays]
    assert all(map(np.array_equal, own, ours))
    layers = keras.models.load_model("models/pretrain.keras").layers
    assert (frozen := {layer.name for layer in layers if isinstance(layer, keras.layers.BatchNormalization)})
    assert not set(changed(before, tuned)) & frozen
    assert {"conv", "conv_1", "output"} < set(changed(before, tuned))
    block = [name for name in before if name.startswith(("expanded_conv_10_", "conv_1"))]
    assert set(changed(before, weights("finetune_fc"))) == {*block, "output"} - frozen
    page = Path("reports/report.md").read_text()
    assert "| all but last_block, output |" in page
    assert "**The features that MobileNetV3Small came with are worth " in page
    # Another run can start from this model.
    again = build_model((SIDE, SIDE, 3), 7, params().model, None, Path("models/finetune_output.keras"))
    assert changed(tuned, {layer.name: layer.get_weights() for layer in again.layers}) == HEAD


def test_trained_batch_normalisation_ends_with_the_statistics_of_the_training_images(params, tasks):
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.BatchNormalization(momentum=0.999, name="norm")(x)
    x = keras.layers.Dropout(0.0, name="dropout1")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax", name="output", dtype="float32")(x))
    settings, images = params(**{"pretrain.optimizer": "adam"}), tasks["source"].train.x.astype("float32")
    fit(model, tasks["source"], settings.pretrain, "pretrain", settings)
    assert model.get_layer("norm").momentum == 0.999
    predicted = model(images).numpy()
    assert np.allclose(predicted, model(images, training=True), atol=0.02)  # as while it was trained
    assert np.ptp(predicted) > 0.1


def test_base_may_be_any_keras_file(params, run, eager, workspace):
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, name="_own_1_conv")(keras.layers.Rescaling(1 / 255)(image))
    own = keras.Model(image, keras.layers.BatchNormalization(name="_own_1_norm")(x))
    own.save(workspace / "own.keras")
    epochs = {"pretrain.epochs": 0, "finetune_output.epochs": 1, "finetune_fc.epochs": 1}
    params(**{"model.backbone": "file", "model.weights": "own.keras"}, **epochs, **CLASSES)
    params(**{"finetune_fc.trainable": ["base_own_1", "output"]})
    run("prepare", "pretrain", "finetune_output", "finetune_fc", "report")
    before = weights("pretrain")
    assert all(map(np.array_equal, own.get_weights(), before["base_own_1_conv"] + before["base_own_1_norm"]))
    assert changed(before, weights("finetune_output")) == ["output"]
    assert changed(before, weights("finetune_fc")) == ["base_own_1_conv", "output"]
    images, model = read_task("source").test.x.astype("float32"), keras.models.load_model("models/pretrain.keras")
    features = keras.Model(model.input, model.get_layer("dropout1").input)(images)
    assert np.allclose(features, own(images).numpy().mean(axis=(1, 2)), atol=1e-5)


def test_base_from_a_file_that_does_not_fit_is_refused_in_one_line(params, tiny_dataset, tmp_path):
    inner = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3)])
    image = keras.Input((None, None, 3))
    keras.Model(image, keras.layers.GlobalAveragePooling2D()(inner(image))).save(nested := tmp_path / "nested.keras")
    settings = params(**{"model.backbone": "file", "model.weights": str(nested)}).model
    for channels, weights, problem in (
        (3, nested, "a model inside the model, expected all layers in one"),
        (1, nested, "model.backbone: was 'file', expected null, or RGB images and a .keras file"),
        (3, "random", "model.backbone: was 'file', expected null, or RGB images and a .keras file"),
    ):
        with pytest.raises(UserError, match=problem):
            build_model((SIDE, SIDE, channels), 2, settings, tiny_dataset["x_test"], weights)


def test_imagenet_weights_come_from_keras_and_a_failed_download_is_explained(params, monkeypatch):
    settings = params(**{"model.backbone": "ResNet50V2"})
    monkeypatch.setattr(file_utils, "get_file", Mock(side_effect=OSError("URL fetch failure on https://...")))
    with pytest.raises(UserError) as error:
        build_model((SIDE, SIDE, 3), 2, settings.model, None, "imagenet")
    for text in ("ResNet50V2: ", "URL fetch failure on https://", ".keras/models", "data/raw/random.yaml"):
        assert text in str(error.value)


def test_layers_match_by_prefix_and_what_does_not_fit_is_refused_in_one_line(params, tiny_dataset, tmp_path, recwarn):
    settings = params(**{"model.backbone": "MobileNetV3Small"})
    reference("EfficientNetV2B0").save_weights(other := tmp_path / "other.weights.h5")
    build = functools.partial(build_model, classes=2, params=settings.model, x_train=tiny_dataset["x_test"])
    model = build((SIDE, SIDE, 1))  # grey
    freeze_except(model, ["expanded_conv_1"])
    assert {layer.name[:16] for layer in model.layers if layer.trainable} == {"expanded_conv_1_"}
    for wrong, message in (
        (lambda: build((8, 8, 3)),
         r"params\.yaml: model\.backbone: was 'MobileNetV3Small', expected .* 32x32, not 8x8x3: data\.image_size"),
        (lambda: build((SIDE, SIDE, 3), weights=other), f"{other}: no weights of MobileNetV3Small .*"),
        (lambda: find_weights(Path("x.h5")), r"x\.h5: no such file, expected .*model\.weights"),
        (lambda: freeze_except(model, ["conv5"], "finetune_fc.trainable"),
         r"params\.yaml: finetune_fc\.trainable: was 'conv5', .*'output', 'fc2', 'fc1', 'backbone', .*_conv_10'.*"),
        (lambda: freeze_except(model, ["avg_pool"]), r"params\.yaml: trainable: was 'avg_pool', expected .*"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{message}$"):
            wrong()
    assert not [warning for warning in recwarn if "Skipping" in str(warning.message)]
