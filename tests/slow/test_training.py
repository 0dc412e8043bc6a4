"""Training: batches, what is computed once, the loop and its refusals, and the record of what came out."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from stages import finetune, prepare, pretrain
from stages.settings import Recipe
from stages.shared.errors import UserError
from stages.shared.files import MODELS, artifact, read_sealed
from stages.shared.halves import Part, read_half
from stages.shared.npz import read_npz
from stages.training import augment, batches, gradcam, loop, model_files, network, record

pytestmark = pytest.mark.usefixtures("set_up")


@pytest.fixture
def halves(tiny):
    """The tiny dataset as `prepare` leaves it."""
    prepare.main()
    return {side: read_half(side) for side in ("source", "target")}


@pytest.fixture
def run_finetune(monkeypatch):
    """``python -m stages.finetune <stage>``, in this process."""

    def run(stage):
        monkeypatch.setattr(sys, "argv", ["finetune", stage])
        finetune.main()

    return run


def build(settings, half):
    return network.build(half.train.x.shape[1:], len(half.class_names), settings.model, half.train.x)


def trained(settings, half):
    """A model after `pretrain`'s training, and its learning curves."""
    model = build(settings, half)
    return model, loop.fit(model, half, settings.pretrain, "pretrain", settings)[0]


def write(model, half):
    """Write what `pretrain` leaves behind."""
    record.write("pretrain", model, half, pd.DataFrame(columns=["epoch"]), seconds=1.5, threads=1)


def weights(stage):
    layers = [layer for layer in model_files.load(MODELS / f"{stage}.keras").layers if layer.weights]
    return {layer.name: layer.get_weights() for layer in layers}


@pytest.mark.parametrize(
    ("dropout", "trainable", "precision", "budgets", "said"),
    [
        (0.2, ["fc2", "output"], "float32", {"feature_memory": 0}, "once and kept in a temporary file in models/"),
        (0.2, ["output"], "mixed_bfloat16", {}, "once and kept in memory"),
        (0.0, ["output"], "float32", {}, "once and kept in memory"),
        (0.0, ["output"], "float32", {"feature_memory": 0, "feature_disk": 99}, "again in every epoch"),
    ],
)
def test_computing_the_trunk_once_changes_nothing(
    params, halves, monkeypatch, capsys, dropout, trainable, precision, budgets, said
):
    settings, half = params(precision=precision, **{"model.dropout": dropout}, **budgets), halves["target"]
    monkeypatch.setattr(batches, "EVALUATION_BATCH", 7)  # images, of which the last batch has fewer
    MODELS.mkdir()
    curves, learned, computed, compute = [], [], [], loop.features
    monkeypatch.setattr(loop, "features", lambda *given: computed.append(len(given[1])) or compute(*given))
    for split in (network.split_frozen, lambda model: (None, model)):
        monkeypatch.setattr(network, "split_frozen", split)
        loop.set_up(settings)
        model = build(settings, half)
        network.freeze_all_but(model, trainable)
        assert model.layers[1].dtype_policy.name == precision
        curves.append(loop.fit(model, half, settings.finetune_fc, "finetune_fc", settings)[0])
        learned.append(model.get_weights())
    pd.testing.assert_frame_equal(pd.read_csv(artifact("history", "finetune_fc")), curves[-1])  # as it was watched
    assert computed == ([] if "every" in said else [len(half.train.y), len(half.test.y)])
    assert capsys.readouterr().out.count(said) == 1
    assert np.allclose(*curves, atol=5e-4)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*learned, strict=True))
    assert curves[0]["loss"].nunique() == settings.finetune_fc.epochs
    assert list(MODELS.iterdir()) == []


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("mixed_bfloat16", 2)])
def test_features_in_a_file_give_the_bits_of_those_in_memory(params, halves, monkeypatch, precision, size):
    curves, learned, made, compute = [], [], [], loop.features
    monkeypatch.setattr(loop, "features", lambda *given: made.append(compute(*given)) or made[-1])
    for budget in ({}, {"feature_memory": 0}):
        settings = params(precision=precision, **budget)
        loop.set_up(settings)
        model = build(settings, halves["target"])
        network.freeze_all_but(model, ["fc2", "output"])
        curves.append(loop.fit(model, halves["target"], settings.finetune_fc, "finetune_fc", settings)[0])
        learned.append(model.get_weights())
    assert [features.dtype.size for features in made] == [size] * 4
    assert curves[0].equals(curves[1])
    assert all(np.array_equal(a, b) for a, b in zip(*learned, strict=True))


def test_fine_tuning_changes_the_trainable_weights_only(params, halves, run_finetune):
    further = params().finetune_fc.model_dump() | {"trainable": ["conv2", "fc1"], "optimizer": "adam", "epochs": 1}
    settings = params(finetune_middle=further, **{"pretrain.epochs": 0, "finetune_output.epochs": 1})
    pretrain.main()
    before = weights("pretrain")
    for stage in ("finetune_output", "finetune_middle"):
        run_finetune(stage)
        after, trainable = weights(stage), settings.finetune(stage).trainable
        assert list(after) == list(before) == settings.model.layers_with_weights
        for layer in after:
            changed = [not np.array_equal(a, b) for a, b in zip(before[layer], after[layer], strict=True)]
            assert changed == [layer in trainable] * 2, (stage, layer)
        counted = sum(array.size for name in trainable for array in after[name])
        assert read_sealed(Path(f"reports/record/{stage}.json"))["trainable_parameters"] == counted


def test_new_head_is_drawn_for_the_target_classes(params, tiny_dataset, run_finetune):
    heads = {f"{stage}.head": "reset" for stage in ("finetune_output", "finetune_fc")}
    still = {"pretrain.epochs": 0, "finetune_fc.epochs": 1, "finetune_fc.learning_rate": 1e-12}
    params(**heads, **still, **{"data.target_classes": [9, 5, 7]})
    prepare.main()
    pretrain.main()
    run_finetune("finetune_fc")
    (old, _), (drawn, bias) = (weights(stage)["output"] for stage in ("pretrain", "finetune_fc"))
    assert drawn.shape == (len(old), 3)
    assert np.abs(drawn).max() < np.sqrt(6 / sum(drawn.shape))  # Glorot's bound
    assert not np.isclose(drawn, old[:, :3], atol=1e-5).any()
    assert np.allclose(bias, 0, atol=1e-5)
    actual = pd.read_csv("reports/predictions/finetune_fc.csv")["actual"]
    assert set(actual) == set(tiny_dataset["class_names"][[9, 5, 7]])


def test_loss_that_is_not_a_number_is_refused_in_one_line(params, halves):
    params(**{"pretrain.learning_rate": 1e30, "pretrain.optimizer": "sgd"})
    with pytest.raises(SystemExit, match=r"^error: pretrain: .* epoch 1 of 3.* pretrain\.learning_rate [^\n]*$"):
        pretrain.main()
    assert not MODELS.exists()


def test_balanced_classes_count_the_same_in_the_training_loss(params, halves):
    half = halves["source"]
    rows = np.sort(np.concatenate([np.flatnonzero(half.train.y == label)[: 2 + 4 * label] for label in range(5)]))
    half = replace(half, train=Part(half.train.x[rows], half.train.y[rows]))
    still = {"model.dropout": 0.0, "pretrain.epochs": 1, "pretrain.learning_rate": 1e-12}
    settings = params(**still, **{"pretrain.class_weight": "balanced"})
    model, history = trained(settings, half)
    per_image = -record.log_probabilities(model, half.train.x)[np.arange(len(rows)), half.train.y]
    by_class = pd.Series(per_image).groupby(half.train.y).mean()
    assert history["loss"][0] == pytest.approx(by_class.mean(), rel=1e-4)
    assert history["loss"][0] != pytest.approx(per_image.mean(), rel=1e-3)


@pytest.mark.parametrize(("patience", "stops"), [(2, True), (50, False)])
def test_the_best_epoch_is_kept_whether_or_not_training_stops_before_its_end(params, tiny, patience, stops):
    recipe = {"pretrain.patience": patience, "pretrain.epochs": 12, "pretrain.learning_rate": 0.2}
    settings = params(**recipe, **{"data.validation_fraction": 0.25})
    prepare.main()
    half = read_half("source")
    model, history = trained(settings, half)
    best = history["val_loss"].argmin()
    assert len(history) == (best + 1 + patience if stops else 12)
    assert history["kept"].tolist() == [int(row == best) for row in range(len(history))]
    log_p = record.log_probabilities(model, half.validation.x)
    loss = -log_p[np.arange(len(log_p)), half.validation.y].mean()
    assert loss == pytest.approx(history["val_loss"][best], rel=1e-4)
    assert history["val_loss"].iloc[-1] > history["val_loss"][best]


def test_every_change_of_augment_is_random_repeatable_and_only_in_training(tiny, halves):
    x = halves["source"].train.x[:16]
    names = get_args(get_args(Recipe.model_fields["augment"].annotation)[0])
    assert set(names) == set(augment.CHANGES)
    for name in names:
        seen = []
        for _ in range(2):
            keras.utils.set_random_seed(1)
            model = augment.augmented(keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Identity()]), [name])
            seen += [model(x, training=True).numpy() for _ in range(2)]
        assert np.array_equal(seen[0], seen[2]), name
        assert not np.array_equal(seen[0], seen[1]), name
        assert -0.01 < seen[0].min() < x.mean() < seen[0].max() < 255.01, name
        assert abs(seen[0].mean() - x.mean()) < 10, name
        assert np.array_equal(model(x, training=False), x), name
    lowered_or_raised = {bool(changed.std() < image.std()) for changed, image in zip(seen[0], x, strict=True)}
    assert lowered_or_raised == {True, False}  # contrast, the last


def test_augmentation_trains_behind_frozen_layers_and_leaves_the_model_as_it_is(params, halves, capsys):
    settings, half = params(**{"finetune_fc.augment": ["flip", "contrast"]}), halves["target"]
    MODELS.mkdir()
    learned = []
    for recipe in (settings.finetune_fc, settings.finetune_fc, settings.finetune_output):
        loop.set_up(settings)
        model = build(settings, half)
        network.freeze_all_but(model, ["fc2", "output"])
        assert len(loop.fit(model, half, recipe, "finetune_fc", settings)[0]) == recipe.epochs
        learned.append(model.get_weights())
    assert capsys.readouterr().out.count("frozen layers are computed in every step instead of once") == 2
    assert all(np.array_equal(a, b) for a, b in zip(learned[0], learned[1], strict=True))
    assert not np.allclose(learned[0][-2], learned[2][-2], atol=1e-3)
    write(model, half)
    names = [layer.name for layer in model_files.load(MODELS / "pretrain.keras").layers]
    assert names == [layer.name for layer in build(settings, half).layers]


def test_training_that_ends_early_is_not_taken_for_a_diverged_one(tiny, halves, monkeypatch):
    fit, stop = keras.Sequential.fit, keras.callbacks.EarlyStopping("loss", min_delta=100)
    stopped = lambda *given, callbacks, **named: fit(*given, callbacks=[*callbacks, stop], **named)  # noqa: E731
    monkeypatch.setattr(keras.Sequential, "fit", stopped)
    _, history = trained(tiny, halves["source"])
    assert 0 < len(history) < tiny.pretrain.epochs


def test_predictions_that_are_not_numbers_are_refused_in_one_line(tiny, halves):
    model = build(tiny, halves["source"])
    model.layers[-1].bias.assign([np.nan] * 5)
    with pytest.raises(UserError, match=r"^[^\n]*pretrain\.learning_rate[^\n]*$"):
        write(model, halves["source"])
    assert not Path("reports/record/pretrain.json").exists()


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(5, 16, 35), (1, 64, 2)])
def test_cosine_schedule_warms_up_peaks_and_ends_at_zero(params, halves, epochs, batch_size, steps):
    recipe = {"pretrain.schedule": "cosine", "pretrain.epochs": epochs, "pretrain.batch_size": batch_size}
    model, history = trained(params(**recipe, **{"model.rescale": False}), halves["source"])
    assert model.optimizer.iterations == steps
    assert np.isfinite(history).all(axis=None)
    rates = []
    for step in range(steps + 1):
        model.optimizer.iterations.assign(step)
        rates.append(float(model.optimizer.learning_rate))
    peak = steps // 5
    after = np.arange(steps - peak + 1) / (steps - peak)
    assert rates[:peak] == pytest.approx(np.linspace(0, 1e-3, peak, endpoint=False), abs=1e-9)
    assert rates[peak:] == pytest.approx(1e-3 * (1 + np.cos(np.pi * after)) / 2, abs=1e-9)


@pytest.mark.parametrize("overconfidence", [1, 1000])
def test_predictions_and_record_are_what_keras_evaluates(tiny, halves, overconfidence):
    half = halves["source"]
    model = build(tiny, half)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * overconfidence)
    write(model, half)
    saved = keras.models.load_model("models/pretrain.keras")
    loss, accuracy = saved.evaluate(half.test.x, half.test.y, verbose=0)
    kept = read_sealed(Path("reports/record/pretrain.json"))
    assert kept["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert kept["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert (kept["set_up"]["threads"], kept["set_up"]["tensorflow"]) == (1, tf.__version__)
    assert read_sealed(Path("reports/timing/pretrain.json")) == {"train_seconds": 1.5}
    expected, table = saved.predict(half.test.x, verbose=0), pd.read_csv("reports/predictions/pretrain.csv")
    assert list(table.columns) == ["actual", "predicted", "probability", "label"]
    assert table["label"].tolist() == half.test.y.tolist()
    assert table["actual"].tolist() == [half.class_names[label] for label in half.test.y]
    assert table["predicted"].tolist() == [half.class_names[label] for label in expected.argmax(axis=1)]
    assert table["probability"].to_numpy() == pytest.approx(expected.max(axis=1), abs=2e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("sure", [1e-4, 1e4])  # probabilities near 0.5, or that round to 1
def test_heat_map_is_what_spoke_for_the_class(set_up, policy, sure):
    """One channel sees light, one dark; light in one corner speaks for class 1, dark in another for class 0."""
    image = keras.Input((8, 8, 1))
    conv = keras.layers.Conv2D(2, 1, dtype=policy)
    output = keras.layers.Dense(2, activation="softmax", dtype="float32")
    model = keras.Sequential([image, conv, keras.layers.Dropout(0.5), keras.layers.Flatten(dtype=policy), output])
    conv.set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2), np.array([0.0, 255.0])])
    kernel = np.zeros((8, 8, 2, 2))
    kernel[0, 0, 0, 1] = kernel[7, 7, 1, 0] = sure
    output.set_weights([kernel.reshape(-1, 2), np.zeros(2)])
    light = np.zeros((8, 8, 1), np.uint8)
    light[:3, :3] = 255
    dark_map, light_map = gradcam.heat_maps(model, np.stack([light, light]), np.array([0, 1]))
    assert np.array_equal(light_map, light[..., 0] / 255)
    assert np.array_equal(dark_map, 1 - light_map)


def test_where_the_model_looks_is_kept_of_its_most_confident_mistakes(tiny, halves):
    half, kept = halves["source"], Path("reports/gradcam/pretrain.npz")
    model, _ = trained(tiny, half)
    write(model, half)
    table, looked = pd.read_csv("reports/predictions/pretrain.csv"), read_npz(kept, ("row", "heat"))
    wrong = table[table["actual"] != table["predicted"]]
    assert len(wrong) > gradcam.EXAMPLES
    assert looked["row"].tolist() == wrong.nlargest(gradcam.EXAMPLES, "probability").index.tolist()
    assert looked["heat"].shape == (gradcam.EXAMPLES, 4, 4)
    before = kept.read_bytes()
    write(model, half)
    assert kept.read_bytes() == before
    said = np.array([half.class_names.index(name) for name in table["predicted"]])
    write(model, replace(half, test=Part(half.test.x, said)))
    assert [len(array) for array in read_npz(kept, ("row", "heat")).values()] == [0, 0]


def test_curves_are_drawn_on_validation_images_if_there_are_some(params, tiny):
    settings = params(**{"data.validation_fraction": 0.25, "pretrain.epochs": 1})
    prepare.main()
    half = read_half("source")
    model, history = trained(settings, half)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    expected = model.evaluate(half.validation.x, half.validation.y, verbose=0)
    assert history[["val_loss", "val_accuracy"]].to_numpy()[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "says"), [("pretrain", "params.yaml: pretrain: missing"), ("finetune_fc", "models/pretrain.keras: ")]
)
def test_unknown_stage_or_missing_model_is_refused_in_one_line(halves, run_finetune, stage, says):
    with pytest.raises(SystemExit, match=rf"^error: {says}[^\n]*$"):
        run_finetune(stage)


def test_threads_are_as_set_or_one_per_core(tiny, monkeypatch):
    given = []
    for kind in ("intra", "inter"):
        monkeypatch.setattr(tf.config.threading, f"set_{kind}_op_parallelism_threads", given.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert loop.set_up(tiny) == 1
    assert loop.set_up(tiny.model_copy(update={"threads": None})) == 3
    assert given == [1, 1, 3, 3]


def test_images_beyond_memory_are_shuffled_in_blocks_and_each_comes_once_an_epoch(monkeypatch):
    monkeypatch.setattr(batches, "BLOCK", 4 * 12)  # 4 images of 12 bytes
    x = np.arange(103, dtype=np.uint8)[:, None, None, None].repeat(12, axis=3)
    order = batches.Order(x, seed=3, memory=2 * 5 * 4 * 12)  # 5 blocks at once
    made = batches.batches(x, np.arange(103), 10, order)
    orders = []
    for epoch in (0, 1, 0):
        order.on_epoch_begin(epoch)
        parts = list(made.as_numpy_iterator())
        assert [len(labels) for _, labels in parts] == [10] * 10 + [3]
        assert all((images[:, 0, 0, 0] == labels).all() for images, labels in parts)
        orders.append([int(label) for _, labels in parts for label in labels])
    assert orders[0] == orders[2] != orders[1]
    for rows in orders:
        assert sorted(rows) == list(range(103))
        assert len({row // 4 for row in rows[:20]}) <= 6  # of 26 blocks; the last one is smaller
        assert rows[:20] != sorted(rows[:20])


def test_every_epoch_has_an_order_of_its_own_and_it_is_the_same_on_every_machine():
    order, drawn = batches.Order(np.zeros((8, 1)), seed=1), []
    for epoch in range(3):
        order.on_epoch_begin(epoch)
        drawn.append(order.rows().tolist())
    assert drawn == [[5, 0, 1, 4, 2, 6, 3, 7], [6, 1, 4, 0, 3, 2, 5, 7], [6, 0, 7, 5, 1, 4, 3, 2]]
