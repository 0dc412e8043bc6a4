"""Training: the notebook's recipe, what is frozen, what is computed once, and what is written down."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from stages import finetune, network, prepare, pretrain, training
from stages.arrays import read_sealed
from stages.settings import UserError

pytestmark = pytest.mark.usefixtures("set_up")
COLUMNS = ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
CURVES = COLUMNS[1:]


@pytest.fixture
def prepared(tiny):
    """The tiny dataset as `prepare` leaves it."""
    prepare.main()


@pytest.fixture
def halves(prepared):
    return {half: training.read_half(Path(f"data/prepared/{half}.npz")) for half in ("source", "target")}


def finish(model, half):
    """What a stage does after training, with the history that training would have left."""
    path = Path("reports/history/pretrain.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",".join(COLUMNS) + "\n")
    training.finish(model, half, "pretrain", 1.5, threads=1)


@pytest.fixture
def untrained(halves, tiny):
    """The files of a `pretrain` stage without any training."""
    finish(build(tiny, halves["source"]), halves["source"])


@pytest.fixture
def run_finetune(monkeypatch):
    """``python -m stages.finetune <stage>``, in this process."""

    def run(*stage):
        monkeypatch.setattr(sys, "argv", ["finetune", *stage])
        finetune.main()

    return run


def build(params, half):
    return network.build(half.train.x.shape[1:], len(half.class_names), params.model, half.train.x)


def history(stage):
    return pd.read_csv(f"reports/history/{stage}.csv")


def record(stage):
    return json.loads(Path(f"reports/record/{stage}.json").read_text())


def weights(stage):
    layers_with_weights = [layer for layer in network.load(Path(f"models/{stage}.keras")).layers if layer.weights]
    return {layer.name: layer.get_weights() for layer in layers_with_weights}


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def notebooks_model(dropout):
    """The notebook's code, for smaller images and layers."""
    model = keras.Sequential()
    model.add(keras.Input((8, 8, 3)))
    model.add(layers.Conv2D(4, (3, 3), activation="relu"))
    model.add(layers.Conv2D(6, (3, 3), activation="relu"))
    model.add(layers.MaxPooling2D(pool_size=(2, 2), strides=2))
    model.add(layers.Dropout(dropout))
    model.add(layers.Flatten())
    model.add(layers.Dense(12, activation="relu"))
    model.add(layers.Dropout(dropout))
    model.add(layers.Dense(8, activation="relu"))
    model.add(layers.Dropout(dropout))
    model.add(layers.Dense(5, activation="softmax"))
    return model


def notebooks_training(model, half, learning_rate=1e-3, batch_size=16, epochs=3):
    """The notebook's code, for fewer epochs and smaller batches: its curves, and its loss and accuracy at the end."""
    one_hot = {part: keras.utils.to_categorical(getattr(half, part).y, 5) for part in ("train", "test")}
    optimizer = keras.optimizers.RMSprop(learning_rate=learning_rate)
    model.compile(optimizer=optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        half.train.x,
        one_hot["train"],
        batch_size=batch_size,
        epochs=epochs,
        verbose=0,
        validation_data=(half.test.x, one_hot["test"]),
    )
    return pd.DataFrame(history.history)[CURVES], model.evaluate(half.test.x, one_hot["test"], verbose=0)


def test_pretraining_learns_what_the_notebooks_code_learns(params, halves, set_up):
    params(**{"model.rescale": False})
    set_up()
    curves, (loss, accuracy) = notebooks_training(model := notebooks_model(0.2), halves["source"])
    pretrain.main()
    assert np.allclose(history("pretrain")[CURVES], curves, atol=1e-3)
    assert equal(network.load(Path("models/pretrain.keras")).get_weights(), model.get_weights())
    assert record("pretrain")["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert record("pretrain")["test_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("stage", "trainable"), [("finetune_output", [-1]), ("finetune_fc", [-3, -1])])
def test_fine_tuning_learns_what_the_notebooks_code_learns(params, halves, set_up, run_finetune, stage, trainable):
    # Without dropout, since that of a new model draws other numbers, and from random features, since any will do.
    params(**{"model.rescale": False, "model.dropout": 0.0, "pretrain.epochs": 0})
    pretrain.main()
    model = notebooks_model(0.0)
    model.set_weights(network.load(Path("models/pretrain.keras")).get_weights())
    for layer in model.layers:
        layer.trainable = False
    for i in trainable:
        model.layers[i].trainable = True
    set_up()
    curves, (loss, accuracy) = notebooks_training(model, halves["target"])
    run_finetune(stage)
    assert np.allclose(history(stage)[CURVES], curves, atol=1e-3)
    assert record(stage)["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert record(stage)["test_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("size", [16, 30])
def test_batches_are_those_that_keras_makes_of_arrays(params, halves, size):
    settings, half = params(), halves["source"]
    assert len(half.train.y) % size  # so that the last batch is not full
    validation, learned = half.test, []
    for arrays in (True, False):
        training.set_up(settings)
        model = build(settings, half)
        model.compile("rmsprop", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        if arrays:
            data = {"x": half.train.x, "y": half.train.y, "batch_size": size, "validation_batch_size": 100}
            data["validation_data"] = (validation.x, validation.y)
        else:
            data = {"x": training.batches(half.train.x, half.train.y, size, shuffle=True)}
            data["validation_data"] = training.batches(validation.x, validation.y, 100, shuffle=False)
        learned.append((model.fit(**data, shuffle=arrays, epochs=3, verbose=0).history, model.get_weights()))
    assert learned[0][0] == learned[1][0]
    assert all(np.array_equal(a, b) for a, b in zip(learned[0][1], learned[1][1], strict=True))


IN_MEMORY, IN_A_FILE = 10**9, 0


@pytest.mark.parametrize(
    ("dropout", "trainable", "memory", "precision"),
    [
        (0.2, ["fc2", "output"], IN_A_FILE, "float32"),
        (0.2, ["output"], IN_MEMORY, "mixed_bfloat16"),
        (0.0, ["output"], IN_MEMORY, "float32"),
        (0.0, ["conv2", "fc1"], IN_A_FILE, "float32"),
    ],
)
def test_computing_the_trunk_once_changes_nothing(params, halves, monkeypatch, dropout, trainable, memory, precision):
    settings, half = params(precision=precision, **{"model.dropout": dropout}), halves["target"]
    training.MODELS.mkdir()
    curves, learned, computed, features = [], [], [], training.features
    monkeypatch.setattr(training, "features", lambda *given: computed.append(len(given[1])) or features(*given))
    for split in (network.split_frozen, lambda model: (None, model)):
        monkeypatch.setattr(network, "split_frozen", split)
        training.set_up(settings)
        model = build(settings, half)
        network.freeze_all_but(model, trainable)
        training.fit(model, half, settings.finetune_fc, "either", memory)
        curves.append(history("either")[CURVES])
        learned.append(model.get_weights())
    assert computed == [len(half.train.y), len(half.test.y)]
    assert np.allclose(curves[0], curves[1], atol=5e-4)
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*learned, strict=True))
    assert curves[0]["loss"].nunique() == 3
    assert list(training.MODELS.iterdir()) == []


@pytest.mark.parametrize("memory", [IN_MEMORY, IN_A_FILE])
def test_features_are_the_trunks_output_for_every_image(params, halves, monkeypatch, memory):
    x = halves["target"].train.x
    model = build(params(**{"model.dropout": 0.0}), halves["target"])
    network.freeze_all_but(model, ["output"])
    trunk, _ = network.split_frozen(model)
    training.MODELS.mkdir()
    for size in (7, len(x), 2 * len(x)):
        monkeypatch.setattr(training, "EVALUATION_BATCH", size)
        found = training.features(trunk, x, memory)
        assert found.dtype == np.float32
        assert np.allclose(found, trunk(x), atol=1e-5)
        assert np.array_equal(found, training.features(trunk, x, IN_MEMORY))


def test_more_devices_than_there_are_are_refused_in_one_line():
    with pytest.raises(UserError, match="devices: was 99, expected at most") as error:
        training.on_devices(99)
    assert "\n" not in str(error.value)


def test_fine_tuning_changes_the_trainable_weights_only(params, prepared, run_finetune):
    further = {"trainable": ["conv2", "fc1"], "head": "keep", "epochs": 1, "batch_size": 16, "optimizer": "adam"}
    further |= {"learning_rate": 0.01, "schedule": "constant"}
    few = {"pretrain.epochs": 0, "finetune_output.epochs": 1, "finetune_fc.epochs": 1, "finetune_fc.head": "reset"}
    settings = params(finetune_middle=further, **few)
    pretrain.main()
    before, file = weights("pretrain"), Path("models/pretrain.keras").read_bytes()
    for stage, recipe in settings.finetune_stages.items():
        run_finetune(stage)
        after = weights(stage)
        assert list(after) == list(before) == ["conv1", "conv2", "fc1", "fc2", "output"]
        for layer in after:
            changed = [not np.array_equal(a, b) for a, b in zip(before[layer], after[layer], strict=True)]
            assert changed == [layer in recipe.trainable] * 2, (stage, layer)
        counted = sum(w.size for name in recipe.trainable for w in after[name])
        assert record(stage)["trainable_parameters"] == counted
    assert Path("models/pretrain.keras").read_bytes() == file


@pytest.mark.parametrize("classes", [[9, 5, 7], [5, 6, 7, 8, 9]])
def test_new_head_is_drawn_for_the_target_classes(params, tiny, tiny_dataset, run_finetune, classes):
    heads = {f"{stage}.head": "reset" for stage in ("finetune_output", "finetune_fc")}
    still = {"pretrain.epochs": 0, "finetune_fc.epochs": 1, "finetune_fc.learning_rate": 1e-12}
    params(**heads, **still, **{"data.target_classes": classes})
    prepare.main()
    pretrain.main()
    run_finetune("finetune_fc")
    old, drawn = (weights(stage)["output"][0] for stage in ("pretrain", "finetune_fc"))
    assert drawn.shape == (len(old), len(classes))
    assert np.abs(drawn).max() < np.sqrt(6 / sum(drawn.shape))  # Glorot's bound
    assert not np.isclose(drawn, old[:, : len(classes)], atol=1e-5).any()
    assert set(pd.read_csv("reports/predictions/finetune_fc.csv")["actual"]) == set(
        tiny_dataset["class_names"][classes]
    )


def files_of(*stages):
    names = ["models/{}.keras", "reports/history/{}.csv", "reports/predictions/{}.csv", "reports/record/{}.json"]
    return {name.format(stage): Path(name.format(stage)).read_bytes() for stage in stages for name in names}


def test_same_seed_writes_the_same_files(params, prepared, run_finetune):
    params(**{"pretrain.epochs": 1, "finetune_fc.epochs": 2})
    written = []
    for _ in range(2):
        pretrain.main()
        run_finetune("finetune_fc")
        written.append(files_of("pretrain", "finetune_fc"))
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []


def test_another_seed_draws_other_weights(params, prepared):
    drawn = []
    for seed in (1, 2):
        params(seed=seed, **{"pretrain.epochs": 0})
        pretrain.main()
        drawn.append(weights("pretrain"))
    assert not any(np.array_equal(drawn[0][layer][0], drawn[1][layer][0]) for layer in drawn[0])


def test_training_learns(params, halves):
    settings = params(**{"pretrain.epochs": 8, "pretrain.learning_rate": 0.01, "model.dropout": 0.1})
    training.fit(build(settings, halves["source"]), halves["source"], settings.pretrain, "pretrain")
    curve = history("pretrain")
    print(curve)
    assert curve["loss"].iloc[-1] < 0.5 * curve["loss"].iloc[0]
    assert curve["val_accuracy"].iloc[-1] > 0.5  # chance is 0.2


def test_history_is_written_every_epoch(halves, tiny, monkeypatch):
    seen, fit = [], keras.Sequential.fit
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(Path("reports/history/pretrain.csv").read_text().splitlines())
    )
    monkeypatch.setattr(
        keras.Sequential, "fit", lambda *args, callbacks, **named: fit(*args, callbacks=[*callbacks, look], **named)
    )
    training.fit(build(tiny, halves["source"]), halves["source"], tiny.pretrain, "pretrain")
    assert [len(lines) for lines in seen] == [1, 2, 3]
    assert {lines[0] for lines in seen} == {",".join(COLUMNS)}
    assert list(history("pretrain").columns) == COLUMNS
    assert history("pretrain")["epoch"].tolist() == [0, 1, 2]


def test_no_epochs_leave_random_features_and_an_empty_history(params, halves, set_up):
    settings = params(**{"pretrain.epochs": 0})
    set_up()
    untrained = build(settings, halves["source"]).get_weights()
    pretrain.main()
    assert Path("reports/history/pretrain.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert equal(network.load(Path("models/pretrain.keras")).get_weights(), untrained)
    assert read_sealed(Path("reports/timing/pretrain.json")) == {"train_seconds": 0.0}
    assert 0 <= record("pretrain")["test_accuracy"] <= 1


@pytest.mark.parametrize("epochs", [1, 3])
def test_loss_that_is_no_number_is_refused_in_one_line(params, prepared, epochs):
    params(**{"pretrain.learning_rate": 1e30, "pretrain.optimizer": "sgd", "pretrain.epochs": epochs})
    with pytest.raises(SystemExit) as stop:
        pretrain.main()
    message = str(stop.value)
    assert message.startswith("error: pretrain: ")
    assert f"in epoch 1 of {epochs}" in message
    assert "pretrain.learning_rate" in message
    assert "\n" not in message
    assert not Path("models/pretrain.keras").exists()


def test_predictions_that_are_no_numbers_are_refused_in_one_line(halves, tiny):
    model = build(tiny, halves["source"])
    model.layers[-1].bias.assign([np.nan] * 5)
    with pytest.raises(UserError, match=r"pretrain\.learning_rate") as error:
        training.finish(model, halves["source"], "pretrain", 1.0, threads=1)
    assert "\n" not in str(error.value)
    assert not Path("reports/record/pretrain.json").exists()


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_optimizer_has_kerass_defaults_and_the_learning_rate(params, halves, name):
    settings = params(**{"model.rescale": False, "pretrain.optimizer": name, "pretrain.learning_rate": 0.01})
    model = build(settings, halves["source"])
    training.fit(model, halves["source"], settings.pretrain, "pretrain")  # trains all, so that it compiles `model`
    theirs = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam}[name]
    assert type(model.optimizer) is theirs
    assert model.optimizer.get_config() | {"name": ""} == theirs(learning_rate=0.01).get_config() | {"name": ""}
    assert model.optimizer.iterations == 3 * np.ceil(100 / 16)


def test_cosine_schedule_warms_up_peaks_and_ends_at_zero(params, halves):
    settings = params(**{"model.rescale": False, "pretrain.schedule": "cosine", "pretrain.epochs": 5})
    model = build(settings, halves["source"])
    training.fit(model, halves["source"], settings.pretrain, "pretrain")
    steps = int(model.optimizer.iterations.numpy())
    assert steps == 5 * 7  # 100 images, 16 a step

    def rate(step):
        model.optimizer.iterations.assign(step)
        return float(model.optimizer.learning_rate)

    rates = [rate(step) for step in range(steps + 1)]
    peak = steps // 5
    assert rates[: peak + 1] == pytest.approx(np.linspace(0, 1e-3, peak + 1), abs=1e-9)
    after = np.arange(steps - peak + 1) / (steps - peak)
    assert rates[peak:] == pytest.approx(1e-3 * (1 + np.cos(np.pi * after)) / 2, abs=1e-9)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def test_cosine_schedule_of_very_few_steps_still_trains(params, halves):
    settings = params(**{"pretrain.schedule": "cosine", "pretrain.epochs": 1, "pretrain.batch_size": 64})
    model = build(settings, halves["source"])
    before = model.get_weights()
    training.fit(model, halves["source"], settings.pretrain, "pretrain")
    assert np.isfinite(model.get_weights()[0]).all()
    assert not equal(model.get_weights(), before)


def test_predictions_are_those_of_the_test_images_in_their_order(halves, untrained):
    half = halves["source"]
    table = pd.read_csv("reports/predictions/pretrain.csv")
    expected = network.load(Path("models/pretrain.keras")).predict(half.test.x, verbose=0)
    assert list(table.columns) == ["actual", "predicted", "probability"]
    assert table["actual"].tolist() == [half.class_names[label] for label in half.test.y]
    assert table["predicted"].tolist() == [half.class_names[label] for label in expected.argmax(axis=1)]
    assert table["probability"].to_numpy() == pytest.approx(expected.max(axis=1), abs=2e-6)
    assert table["probability"].between(0.2, 1).all()  # the largest of five


@pytest.mark.parametrize("overconfidence", [1, 1000])
def test_record_is_what_keras_evaluates(halves, tiny, overconfidence):
    half = halves["source"]
    model = build(tiny, half)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * overconfidence)
    finish(model, half)
    loss, accuracy = keras.models.load_model("models/pretrain.keras").evaluate(half.test.x, half.test.y, verbose=0)
    assert record("pretrain")["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert record("pretrain")["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert read_sealed(Path("reports/timing/pretrain.json")) == {"train_seconds": 1.5}


def test_record_says_what_the_bits_depend_on(untrained):
    set_up = record("pretrain")["set_up"]
    assert set_up["threads"] == 1
    assert (set_up["keras"], set_up["tensorflow"]) == (keras.__version__, tf.__version__)
    assert set_up["python"] == ".".join(str(n) for n in sys.version_info[:3])
    assert set_up["cpu"] and set_up["instruction_set"]
    assert list(record("pretrain")) == [
        "trainable_parameters",
        "test_accuracy",
        "test_loss",
        "set_up",
        "sha256_of",
        "sha256",
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_curves_are_drawn_on_validation_images_where_there_are_some(params, tiny, fraction):
    settings = params(**{"data.validation_fraction": fraction, "pretrain.epochs": 1})
    prepare.main()
    half = training.read_half(Path("data/prepared/source.npz"))
    training.fit(model := build(settings, half), half, settings.pretrain, "pretrain")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    images = training.read_npz(Path("data/prepared/source.npz"), ("x_validation", "y_validation", "x_test", "y_test"))
    part = "validation" if fraction else "test"
    loss, accuracy = model.evaluate(images[f"x_{part}"], images[f"y_{part}"], verbose=0)
    assert history("pretrain")[["val_loss", "val_accuracy"]].to_numpy()[-1] == pytest.approx([loss, accuracy], rel=1e-4)
    assert np.array_equal(half.test.x, images["x_test"])


ELSEWHERE = """
import json, sys
from importlib.util import find_spec
import keras, numpy as np
assert find_spec("stages") is None
x, y = (np.load(file) for file in sys.argv[1:3])
assert x.dtype == np.uint8
models = [keras.models.load_model(file) for file in sys.argv[3:]]
print(json.dumps([[*model.evaluate(x, y, verbose=0), model.predict(x, verbose=0).tolist()] for model in models]))
"""


def test_models_open_in_plain_keras_elsewhere(params, halves, workspace):
    test = halves["source"].test
    np.save("x.npy", test.x)
    np.save("y.npy", test.y)
    files, expected = [str(workspace / name) for name in ("x.npy", "y.npy")], []
    for rescale in (False, True):
        params(**{"model.rescale": rescale, "pretrain.epochs": 1})
        pretrain.main()
        model = network.load(Path("models/pretrain.keras"))
        expected.append((record("pretrain"), model.predict(test.x, verbose=0)))
        files.append(str(Path("models/pretrain.keras").rename(workspace / f"{rescale}.keras")))
    command = [sys.executable, "-W", "error::UserWarning", "-c", ELSEWHERE, *files]
    answer = subprocess.run(command, cwd="/", env={}, check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for (loss, accuracy, found), (kept, here) in zip(json.loads(answer.stdout), expected, strict=True):
        assert np.allclose(found, here, atol=1e-6)
        assert accuracy == pytest.approx(kept["test_accuracy"], abs=1e-6)
        assert loss == pytest.approx(kept["test_loss"], rel=1e-4)


@pytest.mark.parametrize("arguments", [[], ["finetune_fc", "finetune_output"], ["finetune_unheard"], ["pretrain"]])
def test_unknown_stage_is_refused_in_one_line(prepared, run_finetune, arguments):
    with pytest.raises(SystemExit, match=r"^error: .*expected [^\n]*$"):
        run_finetune(*arguments)


@pytest.mark.parametrize("missing", ["data/prepared/target.npz", "models/pretrain.keras"])
def test_missing_input_is_refused_in_one_line(untrained, run_finetune, missing):
    Path(missing).unlink()
    with pytest.raises(SystemExit, match=rf"^error: {missing}: [^\n]*$"):
        run_finetune("finetune_fc")


def test_threads_are_as_set_or_one_per_core(tiny, monkeypatch):
    assert training.set_up(tiny) == 1
    assert tf.config.threading.get_intra_op_parallelism_threads() == 1
    assert tf.config.threading.get_inter_op_parallelism_threads() == 1
    given = []
    for kind in ("intra", "inter"):
        monkeypatch.setattr(tf.config.threading, f"set_{kind}_op_parallelism_threads", given.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5})
    assert training.set_up(tiny.model_copy(update={"threads": None})) == 3
    assert given == [3, 3]
