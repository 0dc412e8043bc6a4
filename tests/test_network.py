"""The network is the notebook's, splits where its layers allow it, and is saved as any Keras user can load it."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from repository import default_params
from stages import network, settings
from stages.settings import UserError

pytestmark = pytest.mark.usefixtures("set_up")
NOTEBOOKS_LAYERS = [
    ("conv1", "Conv2D", (30, 30, 32)),
    ("conv2", "Conv2D", (28, 28, 64)),
    ("pool", "MaxPooling2D", (14, 14, 64)),
    ("dropout1", "Dropout", (14, 14, 64)),
    ("flatten", "Flatten", (12544,)),
    ("fc1", "Dense", (128,)),
    ("dropout2", "Dropout", (128,)),
    ("fc2", "Dense", (64,)),
    ("dropout3", "Dropout", (64,)),
    ("output", "Dense", (5,)),
]
NAMES = [name for name, _, _ in NOTEBOOKS_LAYERS]


def notebooks_model():
    model = keras.Sequential()
    model.add(keras.Input((32, 32, 3)))
    model.add(layers.Conv2D(32, (3, 3), activation="relu"))
    model.add(layers.Conv2D(64, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D(pool_size=(2, 2), strides=2))
    model.add(layers.Dropout(0.2))
    model.add(layers.Flatten())
    model.add(layers.Dense(128, activation="relu"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(5, activation="softmax"))
    return model


@pytest.fixture
def committed():
    """The network of the committed settings, for CIFAR-10's images."""
    model = settings.Settings.model_validate(default_params()).model
    return network.build((32, 32, 3), 5, model, np.zeros((1, 32, 32, 3), np.uint8))


@pytest.fixture
def images(tiny_dataset):
    return tiny_dataset["x_test"]


@pytest.fixture
def build(params, images):
    """A tiny network with some settings changed."""
    return lambda **changes: network.build((8, 8, 3), 5, params(**changes).model, images)


def test_layers_are_the_notebooks(committed):
    found = [(layer.name, type(layer).__name__, layer.output.shape[1:]) for layer in committed.layers]
    assert found == NOTEBOOKS_LAYERS


def test_layers_do_what_the_notebooks_do(committed):
    ours, theirs = ([layer.get_config() for layer in model.layers] for model in (committed, notebooks_model()))
    for config in ours + theirs:
        del config["name"]
    assert ours == theirs


def test_initialisers_activations_and_rates_are_those_of_the_notebook(committed):
    for layer in committed.layers:
        if layer.weights:
            assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
            assert isinstance(layer.bias_initializer, keras.initializers.Zeros)
            assert layer.activation.__name__ == ("softmax" if layer.name == "output" else "relu")
    assert [layer.rate for layer in committed.layers if isinstance(layer, layers.Dropout)] == [0.2] * 3


def test_seed_gives_the_notebooks_weights_and_dropout(committed, set_up):
    set_up()
    theirs = notebooks_model()
    for ours, their in zip(committed.layers, theirs.layers, strict=True):
        assert len(ours.variables) == len(their.variables)
        for a, b in zip(ours.variables, their.variables, strict=True):
            assert np.array_equal(a, b), ours.name
    assert any(np.any(weight) for weight in theirs.get_weights())


@pytest.mark.parametrize(
    ("trainable", "count"), [(NAMES, 1_633_733), (["output"], 325), (["fc2", "output"], 8_581), (["conv1"], 896)]
)
def test_trainable_parameters_are_those_of_the_notebook(committed, trainable, count):
    network.freeze_all_but(committed, trainable)
    assert network.trainable_parameters(committed) == count
    assert {w.path.split("/")[-2] for w in committed.trainable_weights} <= set(trainable)


def test_freezing_again_forgets_the_first_choice(committed):
    network.freeze_all_but(committed, ["output"])
    network.freeze_all_but(committed, ["fc2"])
    assert [layer.name for layer in committed.layers if layer.trainable] == ["fc2"]


def test_settings_choose_numbers_and_sizes_of_layers(build):
    model = build(**{"model.conv_filters": [4], "model.dense_units": [7, 6, 5], "model.rescale": False})
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers}
    assert list(shapes) == ["conv1", *NAMES[2:9], "fc3", "dropout4", "output"]
    assert [shapes[name] for name in ("conv1", "fc1", "fc2", "fc3")] == [(6, 6, 4), (7,), (6,), (5,)]


def test_rescaled_network_standardises_each_channel_of_raw_pixels(build, tiny_dataset):
    images = tiny_dataset["x_test"]
    model = build(**{"model.rescale": True})
    standardised = keras.Sequential(model.layers[:1]).predict(images, verbose=0)
    assert standardised.mean(axis=(0, 1, 2)) == pytest.approx([0, 0, 0], abs=1e-4)
    assert standardised.std(axis=(0, 1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert [layer.name for layer in model.layers[1:]] == NAMES


@pytest.mark.parametrize(
    ("dropout", "rescale", "trainable", "trunk"),
    [
        (0.2, False, ["output"], ["conv1", "conv2", "pool"]),
        (0.2, False, ["fc2", "output"], ["conv1", "conv2", "pool"]),
        (0.2, False, ["conv2", "output"], ["conv1"]),
        (0.2, False, NAMES, None),
        (0.2, False, ["conv1"], None),
        (0.2, True, ["output"], ["rescale", "conv1", "conv2", "pool"]),
        (0.2, True, NAMES, None),  # standardising alone is not worth the memory
        (0.0, False, ["output"], NAMES[:-1]),
        (0.0, False, ["fc2", "output"], NAMES[:7]),
        (0.0, False, ["fc1", "output"], NAMES[:5]),
        (0.0, False, NAMES, None),
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


RANDOM = {
    "dropout": lambda: layers.Dropout(0.5),
    "spatial dropout": lambda: layers.SpatialDropout2D(0.5),
    "noise": lambda: layers.GaussianNoise(1.0),
    "flip": lambda: layers.RandomFlip(),
    "contrast": lambda: layers.RandomContrast(0.5),
    "dropout in a model": lambda: keras.Sequential([layers.Activation("relu"), layers.Dropout(0.5)]),
}


@pytest.mark.parametrize("random", RANDOM)
def test_random_layers_end_the_trunk_whatever_their_names(random, images):
    inner = [layers.Conv2D(3, 3, name="dropout1"), layers.BatchNormalization(name="dropout2"), RANDOM[random]()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *inner, layers.Flatten(), layers.Dense(5, name="last")])
    network.freeze_all_but(model, ["last"])
    trunk, rest = network.split_frozen(model)
    assert trunk.layers == inner[:2]
    assert np.array_equal(trunk(images, training=True), trunk(images, training=False))
    assert np.allclose(rest(trunk(images), training=False), model(images, training=False), atol=1e-5)
    assert not np.array_equal(rest(trunk(images), training=True), rest(trunk(images), training=True))


@pytest.mark.parametrize("own_weights", [True, False])
def test_layers_that_change_while_training_end_the_trunk(own_weights):
    normalise = layers.BatchNormalization(center=own_weights, scale=own_weights, name="normalise")
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(3, 3), normalise, layers.Dense(5, name="last")])
    network.freeze_all_but(model, ["normalise", "last"])
    trunk, _ = network.split_frozen(model)
    assert trunk.layers == model.layers[:1]


@pytest.mark.parametrize("classes", [3, 5])
def test_new_output_is_drawn_and_all_other_weights_stay(build, images, classes):
    old = build()
    before, width = old.get_weights(), old.layers[-1].input.shape[-1]
    new = network.with_new_output(old, classes)
    after = new.get_weights()
    assert [layer.name for layer in new.layers] == [layer.name for layer in old.layers]
    assert all(np.array_equal(a, b) for a, b in zip(before[:-2], after[:-2], strict=True))
    assert after[-2].shape == (width, classes)
    assert not np.any(after[-1])
    assert len(np.unique(after[-2])) == after[-2].size
    assert not np.isin(after[-2], before[-2]).any()
    assert np.asarray(new(images)).sum(axis=1) == pytest.approx(np.ones(len(images)), abs=1e-5)


def test_equal_models_make_equal_files(build, set_up, workspace):
    models, files = [], []
    for _ in range(2):
        set_up()
        models.append(build())  # both stay in memory, at different addresses
        network.freeze_all_but(models[-1], ["fc2", "output"])
        files.append(workspace / "models" / str(len(models)) / "same.keras")
        network.save(models[-1], files[-1])
    elsewhere = workspace / "models/elsewhere/same.keras"
    code = (
        "from pathlib import Path; from stages import network, settings, training; import numpy as np;"
        f"p = settings.load(Path({str(workspace / 'params.yaml')!r})); training.set_up(p);"
        f"m = network.build((8, 8, 3), 5, p.model, np.load({str(workspace / 'data/raw/tiny.npz')!r})['x_test']);"
        f"network.freeze_all_but(m, ['fc2', 'output']); network.save(m, Path({str(elsewhere)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(network.__file__).parents[1], check=True)
    assert files[0].read_bytes() == files[1].read_bytes() == elsewhere.read_bytes()
    assert [file.name for file in files[0].parent.iterdir()] == ["same.keras"]
    network.save(build(), elsewhere)
    assert files[0].read_bytes() != elsewhere.read_bytes()


def test_models_with_a_new_output_make_equal_files_too(build, set_up, workspace):
    files = [workspace / "first.keras", workspace / "second.keras"]
    for file in files:
        set_up()
        network.save(network.with_new_output(build(), 3), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_loaded_model_is_the_saved_one_with_what_is_frozen(build, images, workspace):
    model = build()
    network.freeze_all_but(model, ["fc2", "output"])
    network.save(model, workspace / "m.keras")
    loaded = network.load(workspace / "m.keras")
    assert [layer.name for layer in loaded.layers if layer.trainable] == ["fc2", "output"]
    assert np.array_equal(loaded(images), model(images))
    assert not loaded.compiled


def damages(content: bytes) -> dict[str, bytes | None]:
    middle = len(content) // 2
    return {
        "missing": None,
        "empty": b"",
        "truncated": content[:middle],
        "without its last byte": content[:-1],
        "changed": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "no model": b"version https://example.org\n",
    }


@pytest.mark.parametrize("damage", damages(b"12"))
def test_damaged_model_is_refused_in_one_line(build, workspace, damage):
    file = workspace / "m.keras"
    network.save(build(), file)
    content = damages(file.read_bytes())[damage]
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"m\.keras") as error:
        network.load(file)
    assert "\n" not in str(error.value)
    assert "dvc repro" in str(error.value)


def test_more_convolutions_than_the_images_have_room_for_are_refused(params):
    model = params(**{"model.conv_filters": [4, 4, 4]}).model
    images = np.zeros((2, 8, 8, 3), np.uint8)
    network.build((8, 8, 3), 2, model, images)
    deeper = params(**{"model.conv_filters": [4, 4, 4, 4]}).model
    with pytest.raises(UserError, match=r"model\.conv_filters: was \[4, 4, 4, 4\], expected at most 3 layers"):
        network.build((8, 8, 3), 2, deeper, images)
