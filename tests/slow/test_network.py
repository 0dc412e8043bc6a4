"""The network: its settings, what is frozen, where it is split, and what it weighs."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from repository import ROOT
from stages.settings import Settings
from stages.shared.errors import UserError
from stages.shared.program import program
from stages.training import network

pytestmark = pytest.mark.usefixtures("set_up")
AFTER_CONVOLUTIONS = ["pool", "dropout1", "flatten", "fc1", "dropout2", "fc2", "dropout3", "output"]
NAMES = ["conv1", "conv2", *AFTER_CONVOLUTIONS]


@pytest.fixture
def images(tiny_dataset):
    return tiny_dataset["x_test"]


@pytest.fixture
def build(params, images):
    """A tiny network with some settings changed."""
    return lambda **changes: network.build((8, 8, 3), 5, params(**changes).model, images)


def test_rescaled_network_standardises_each_channel_of_raw_pixels(build, images):
    model = build(**{"model.rescale": True})
    standardised = keras.Sequential(model.layers[:1]).predict(images, verbose=0)
    assert standardised.mean(axis=(0, 1, 2)) == pytest.approx([0, 0, 0], abs=1e-4)
    assert standardised.std(axis=(0, 1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert model.layers[0].get_config()["mean"] == pytest.approx(images.mean(axis=(0, 1, 2)), rel=1e-12)
    assert model.layers[0].get_config()["variance"] == pytest.approx(images.var(axis=(0, 1, 2)), rel=1e-12)
    assert [layer.name for layer in model.layers[1:]] == NAMES


def test_importing_keras_leaves_the_collector_and_matplotlib_to_others():
    code = "import gc, sys, stages.training; assert gc.isenabled() and 'matplotlib' not in sys.modules"
    code += "; import matplotlib.pyplot"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_more_convolutions_than_the_images_have_room_for_are_refused(build):
    build(**{"model.conv_filters": [4, 4, 4]})
    with pytest.raises(UserError, match=r"model\.conv_filters: was \[4, 4, 4, 4\], expected at most 3 layers"):
        build(**{"model.conv_filters": [4, 4, 4, 4]})


@pytest.mark.parametrize(("side", "says"), [(32, "1,633,733 weights, 6.5 MB"), (224, "99,151,301 weights, 396.6 MB")])
def test_weight_says_how_large_the_network_is_and_warns_if_large_images_are_why(side, says):
    images = np.zeros((1, side, side, 3), np.uint8)
    model = network.build((side, side, 3), 5, Settings().model, images)
    assert says in network.weight(model)
    assert ("224x224" in network.weight(model)) == (side == 224)
    assert network._count_weights((side, side, 3), 5, Settings().model) == model.count_params()


def test_memory_that_is_too_small_ends_in_one_line(images):
    wanted = r"20000x20000 pixels takes [\d,.]+ GB, expected less than the memory, [\d.]+ GB: smaller images"
    with pytest.raises(UserError, match=wanted):
        network.build((20_000, 20_000, 3), 2, Settings().model, images)
    for takes_it, what in (
        (lambda: tf.zeros([9**15]), r"OOM when allocating tensor with shape\[\d+\]"),
        (lambda: np.zeros(9**15), "Unable to allocate [^\n]+"),
    ):
        with pytest.raises(SystemExit, match=f"^error: memory is full, expected fewer [^\n]+{what}[^\n]*$"):
            program(takes_it)()


@pytest.mark.parametrize(
    ("dropout", "rescale", "trainable", "trunk"),
    [
        (0.2, False, ["fc2", "output"], ["conv1", "conv2", "pool"]),
        (0.2, True, ["conv1", "conv2", "fc1", "fc2", "output"], None),  # standardising alone is not worth the memory
        (0.0, False, ["fc1", "output"], NAMES[:5]),
    ],
)
def test_trunk_ends_before_the_first_trainable_or_random_layer(build, images, dropout, rescale, trainable, trunk):
    model = build(**{"model.dropout": dropout, "model.rescale": rescale})
    network.freeze_all_but(model, trainable)
    first, rest = network.split_frozen(model)
    if trunk is None:
        assert first is None
        assert rest is model
        return
    assert [layer.name for layer in first.layers] == trunk
    assert first.layers + rest.layers == model.layers  # the very same objects: what is trained there is trained here
    assert np.allclose(rest(first(images)), model(images), atol=1e-6)


def test_random_layers_and_those_that_change_while_training_end_the_trunk_whatever_their_names(images):
    random = keras.Sequential([layers.Activation("relu"), layers.GaussianNoise(1.0)])
    inner = [layers.Conv2D(3, 3, name="dropout1"), layers.BatchNormalization(name="dropout2"), random]
    model = keras.Sequential([keras.Input((8, 8, 3)), *inner, layers.Flatten(), layers.Dense(5, name="last")])
    network.freeze_all_but(model, ["last"])
    trunk, rest = network.split_frozen(model)
    assert trunk.layers == inner[:2]
    assert np.array_equal(trunk(images, training=True), trunk(images, training=False))
    assert not np.array_equal(rest(trunk(images), training=True), rest(trunk(images), training=True))
    network.freeze_all_but(model, ["dropout2", "last"])
    assert network.split_frozen(model)[0].layers == inner[:1]
