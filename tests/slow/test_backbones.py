"""Networks of keras.applications: their weights, what is frozen, what is computed once, and what the user gets."""

import functools
import inspect
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from stages import finetune, prepare, pretrain, report
from stages.settings import Backbone
from stages.shared.errors import UserError
from stages.shared.files import read_sealed, sha256
from stages.shared.halves import read_half
from stages.training import loop, network

pytestmark = pytest.mark.usefixtures("set_up")
SIDE = 32  # pixels
HEADS = {f"{stage}.head": "reset" for stage in ("finetune_output", "finetune_fc")}
CLASSES = {"data.source_classes": [0, 1, 2], "data.target_classes": [3, 4], "data.image_size": SIDE}
FEW = {f"{stage}.epochs": 1 for stage in ("pretrain", "finetune_output", "finetune_fc")}


@functools.cache
def keras_own(name: str) -> keras.Model:
    """The backbone as a Keras user builds it, its weights unlike any fresh ones."""
    model = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    rng = np.random.default_rng(3)
    model.set_weights([weight * rng.uniform(0.9, 1.1) + 0.01 for weight in model.get_weights()])
    return model


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A pointer to the weights of Keras's own backbone on a server of this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    for variable, value in {"XDG_CACHE_HOME": tmp_path / "cache", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)

    def serve(name: str) -> str:
        keras_own(name).save_weights(file := folder / f"{name}.weights.h5")
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        pointer = {"name": name, "urls": [url], "sha256": sha256(file.read_bytes())}
        Path("data/raw/weights.yaml").write_text(yaml.safe_dump(pointer))
        return "data/raw/weights.yaml"

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield serve
        server.shutdown()


@pytest.fixture
def eager():
    """Without graphs, whose making takes most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def run(monkeypatch, *stages: str) -> None:
    """The named stages, after `prepare`, in this process."""
    programs = {"pretrain": pretrain.main, "report": report.main}
    prepare.main()
    for stage in stages:
        monkeypatch.setattr(sys, "argv", [stage, *(stages[:-1] if stage == "report" else [stage])])
        programs.get(stage, finetune.main)()


def trained(stage: str, half: str) -> tuple[keras.Model, dict[str, list[np.ndarray]]]:
    """A stage's model, which opens in plain Keras and is as accurate as the record says, and its weights by layer."""
    model, test = keras.models.load_model(f"models/{stage}.keras"), read_half(half).test
    accuracy = (np.argmax(model(test.x, training=False), axis=1) == test.y).mean()  # `evaluate` takes time to trace
    assert read_sealed(Path(f"reports/record/{stage}.json"))["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    return model, {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def differ(before: dict, after: dict) -> list[str]:
    """The layers whose weights, moving averages included, are not the same."""
    same = {name: all(map(np.array_equal, before[name], after[name])) for name in after if name in before}
    return [name for name, equal in same.items() if not equal]


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "ResNet50V2", "ConvNeXtTiny"])
def test_frozen_features_stay_as_they_come(params, tiny_dataset, served, eager, monkeypatch, name):
    params(**FEW, **CLASSES, **HEADS, **{"data.path": "data/raw/tiny.npz", "model.backbone": name})
    params(**{"model.weights": served(name), "pretrain.epochs": 0})
    trunks, compute = [], loop.features
    monkeypatch.setattr(loop, "features", lambda trunk, *given: trunks.append(trunk) or compute(trunk, *given))
    run(monkeypatch, "pretrain", "finetune_output")
    assert len(trunks) == 2  # training and test images, once
    assert len(trunks[0].weights) == len(keras_own(name).weights)  # of all that is frozen, stochastic depth included
    (model, layers), own = trained("finetune_output", "target"), keras_own(name)
    heads = ["fc1", "fc2", "output"]
    assert list(layers)[-3:] == heads
    ours = [weight for layer in layers if layer not in heads for weight in layers[layer]]
    assert all(map(np.array_equal, ours, own.get_weights()))
    x = read_half("target").test.x.astype(np.float32)
    own_input = keras.applications.resnet_v2.preprocess_input(x.copy()) if name == "ResNet50V2" else x
    expected = np.mean(own(own_input, training=False), axis=(1, 2))
    if name != "ConvNeXtTiny":  # which normalises what is pooled
        ours = keras.Model(model.input, model.get_layer("dropout1").input)(x, training=False)
        assert np.allclose(ours, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_frozen_last_block_and_all_from_pretraining_to_report(params, tiny_dataset, served, monkeypatch):
    settings = params(**FEW, **CLASSES, **HEADS, **{"data.path": "data/raw/tiny.npz"})
    everything = settings.finetune_fc.model_dump() | {"trainable": ["backbone", "fc1", "fc2", "output"]}
    some = {"finetune_fc.trainable": ["expanded_conv_1", "conv_1", "output"], "finetune_all": everything}
    params(**some, **{"model.backbone": "MobileNetV3Small", "model.weights": served("MobileNetV3Small")})
    params(**{"pretrain.epochs": 0})
    run(monkeypatch, "pretrain", "finetune_output", "finetune_fc", "finetune_all", "report")
    _, before = trained("pretrain", "source")
    assert differ(before, trained("finetune_output", "target")[1]) == ["output"]
    block = [name for name in before if name.startswith(("expanded_conv_1_", "conv_1"))]
    assert sorted(differ(before, trained("finetune_fc", "target")[1])) == sorted([*block, "output"])
    _, tuned = trained("finetune_all", "target")
    assert differ(before, tuned) == list(before)
    page = Path("reports/report.md").read_text()
    assert "| all but expanded_conv_1, conv_1, output |" in page
    assert "the features are those that `MobileNetV3Small` came with" in page
    # The model of one run gives another its weights.
    again = network.build((SIDE, SIDE, 3), 7, params().model, None, Path("models/finetune_all.keras"))
    assert differ(tuned, {layer.name: layer.get_weights() for layer in again.layers}) == ["fc1", "fc2", "output"]


def test_computing_frozen_features_once_changes_nothing(params, tiny_dataset, monkeypatch):
    backbone = {"model.backbone": "MobileNetV3Small"}
    settings = params(**CLASSES, **HEADS, **backbone, **{"data.path": "data/raw/tiny.npz"})
    prepare.main()
    half, curves, computed, compute = read_half("target"), [], [], loop.features
    monkeypatch.setattr(loop, "features", lambda *given: computed.append(given) or compute(*given))
    recipe = settings.finetune_fc.model_copy(update={"epochs": 3, "learning_rate": 1e-4, "batch_size": 16})
    for split in (network.split_frozen, lambda model: (None, model)):
        monkeypatch.setattr(network, "split_frozen", split)
        loop.set_up(settings)
        model = network.build((SIDE, SIDE, 3), 2, settings.model, half.train.x)
        network.freeze_all_but(model, ["expanded_conv_10", "output"])
        curves.append(loop.fit(model, half, recipe, "finetune_fc", settings)[0])
    assert len(computed) == 2  # of training and test images, once
    assert np.allclose(*curves, atol=1e-4)


@pytest.mark.parametrize("name", get_args(Backbone))
def test_imagenet_is_kerass_own_download_and_its_absence_is_told(params, monkeypatch, tmp_path, name):
    settings, asked = params(**{"model.backbone": name}), []

    def no_internet(file: str, origin: str, file_hash: str, **_: object) -> None:
        asked.append(file_hash)
        raise OSError(f"URL fetch failure on {origin}: None -- no network")

    monkeypatch.setattr(file_utils, "get_file", no_internet)
    build = functools.partial(network.build, (SIDE, SIDE, 3), 2, settings.model, None, "imagenet")
    with pytest.raises(UserError) as error:
        build()
    for text in (f"{name}: ", "URL fetch failure on https://", ".keras/models", "data/raw/random.yaml"):
        assert text in str(error.value)
    builder = sys.modules[inspect.unwrap(getattr(keras.applications, name)).__module__]
    tables = [getattr(module, "WEIGHTS_HASHES", {}) for module in (builder, keras.src.applications.resnet)]
    assert asked[0] in {sum for table in tables for sums in table.values() for sum in sums}
    if name == "ResNet50V2":  # the format of Keras's files, and with a layer of ours in front
        with h5py.File(tmp_path / "keras_has.h5", "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, keras_own(name))
        monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(tmp_path / "keras_has.h5"))
        ours, own = build().get_weights(), keras_own(name).get_weights()
        assert all(map(np.array_equal, ours[: len(own)], own))


def test_what_does_not_fit_is_told_in_one_line(params, tiny_dataset, tmp_path):
    settings = params(**{"model.backbone": "MobileNetV3Small"})
    keras_own("EfficientNetV2B0").save_weights(other := tmp_path / "other.weights.h5")
    build = functools.partial(network.build, classes=2, params=settings.model, x_train=tiny_dataset["x_test"])
    model = build((SIDE, SIDE, 1))  # grey
    for wrong, says in (
        (lambda: build((8, 8, 3)), "params.yaml: model.backbone: images of 8x8x3, expected .* 32x32: data.image_size"),
        (lambda: build((SIDE, SIDE, 3), weights=other), f"{other}: no weights of MobileNetV3Small .*"),
        (lambda: pretrain.find_weights(Path("x.h5")), r"x\.h5: no such file, expected .*model\.weights"),
        (lambda: network.freeze_all_but(model, ["conv5"], "finetune_fc.trainable"),
         r"params\.yaml: finetune_fc\.trainable: was 'conv5', .*'output', 'fc2', 'fc1', 'backbone', .*_conv_10'.*"),
        (lambda: network.freeze_all_but(model, ["avg_pool"]), "params.yaml: trainable: was 'avg_pool', expected .*"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{says}$"):
            wrong()
