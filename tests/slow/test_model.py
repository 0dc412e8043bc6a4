"""The network, the layers that are trained, and its file."""

from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.settings import Settings
from stages.shared.errors import UserError
from stages.shared.files import MODELS, read_json
from stages.shared.program import program
from stages.training import model_files
from stages.training.model import build_model

pytestmark = pytest.mark.usefixtures("configured")


@pytest.fixture
def build(params, tiny_dataset):
    """Build a tiny network with some settings changed."""
    return lambda **changes: build_model((8, 8, 3), 5, params(**changes).model, tiny_dataset["x_test"])


def weights(stage):
    """Load a stage's weights by layer."""
    model = model_files.load(MODELS / f"{stage}.keras")
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def test_rescaled_network_standardises_each_channel_of_raw_pixels(build, tiny_dataset):
    model, images = build(**{"model.rescale": True}), tiny_dataset["x_test"]
    standardised = keras.Sequential(model.layers[:1]).predict(images, verbose=0)
    assert standardised.mean(axis=(0, 1, 2)) == pytest.approx([0, 0, 0], abs=1e-4)
    assert standardised.std(axis=(0, 1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    assert model.layers[0].get_config()["mean"] == pytest.approx(images.mean(axis=(0, 1, 2)), rel=1e-12)
    assert model.layers[0].get_config()["variance"] == pytest.approx(images.var(axis=(0, 1, 2)), rel=1e-12)
    names = ["conv1", "conv2", "pool", "dropout1", "flatten", "fc1", "dropout2", "fc2", "dropout3", "output"]
    assert [layer.name for layer in model.layers[1:]] == names


def test_more_convolutions_than_the_images_have_room_for_are_refused(build):
    build(**{"model.conv_filters": [4, 4, 4]})
    with pytest.raises(UserError, match=r"model\.conv_filters: was \[4, 4, 4, 4\], expected at most 3 layers"):
        build(**{"model.conv_filters": [4, 4, 4, 4]})


def test_too_little_memory_is_reported_in_one_line():
    needed = r"20000x20000 pixels needs [\d,.]+ GB, expected less than the memory, [\d.]+ GB: smaller images"
    with pytest.raises(UserError, match=needed):
        build_model((20_000, 20_000, 3), 2, Settings().model, None)
    for full in (MemoryError("no\nroom"), tf.errors.ResourceExhaustedError(None, None, "no\nroom")):
        with pytest.raises(SystemExit, match=r"^error: memory is full, expected fewer [^\n]+: no room$"):
            program(Mock(side_effect=full))()


def test_fine_tuning_changes_the_trainable_layers_only_and_draws_a_new_head(params, tiny, run):
    recipe = {"finetune_output.epochs": 1, "finetune_output.head": "reset", "finetune_fc.head": "reset"}
    params(**recipe, **{"pretrain.epochs": 0, "data.target_classes": [9, 5, 7]})
    further = tiny.finetune_fc.model_dump() | {"trainable": ["conv2", "fc1", "output"], "head": "reset", "epochs": 1}
    settings = params(finetune_middle=further)
    run("prepare", "pretrain", "finetune_output", "finetune_middle")
    before = weights("pretrain")
    for stage in ("finetune_output", "finetune_middle"):
        after, trainable = weights(stage), settings.finetune(stage).trainable
        assert list(after) == list(before) == settings.model.layer_names
        for layer in after:
            changed = [not np.array_equal(a, b) for a, b in zip(before[layer], after[layer], strict=True)]
            assert set(changed) == {layer in trainable}, (stage, layer)
        count = sum(array.size for name in trainable for array in after[name])
        assert read_json(Path(f"reports/{stage}/record.json"))["trainable_parameters"] == count
        assert after["output"][0].shape == (8, 3)
        assert not np.isclose(after["output"][0], before["output"][0][:, :3], atol=0.01).all(axis=0).any()


def test_missing_or_damaged_model_is_refused_in_one_line(build, workspace):
    file = workspace / "models/m.keras"
    model_files.save(build(), file, ["a", "b"])
    content = file.read_bytes()
    for damaged in (None, b"", content[: len(content) // 2], content[:-1], b"version https://example.org\n"):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^[^\n]*m\.keras: [^\n]*dvc repro[^\n]*$"):
            model_files.load(file)
