"""Settings of a recipe beyond the notebook's: rates, weight decay, soft labels, mixed images, the starting point."""

import keras
import numpy as np
import pytest

from stages.settings import Recipe
from stages.shared.files import read_json, stage_folder
from stages.training.augment import Mixing
from stages.training.evaluate import log_probabilities
from stages.training.input_pipeline import ShuffleOrder, make_dataset
from stages.training.optimizer import make_optimizer

pytestmark = pytest.mark.usefixtures("configured")
ONE_STEP = {"pretrain.epochs": 1, "pretrain.batch_size": 100, "pretrain.optimizer": "sgd", "model.dropout": 0.0}


def test_base_learns_at_a_fraction_of_the_rate(params, tasks, train):
    start = train(params(**ONE_STEP, **{"pretrain.learning_rate": 1e-30}), tasks["source"])[0].get_weights()
    steps = []
    for factor in (1.0, 0.25):
        rates = {"pretrain.learning_rate": 0.1, "pretrain.base_learning_rate": factor}
        model, _ = train(params(**rates), tasks["source"])
        steps.append([now - before for now, before in zip(model.get_weights(), start, strict=True)])
    names = [variable.path for variable in model.variables if variable.trainable]
    for name, full, slow in zip(names, *(step[-len(names) :] for step in steps), strict=False):
        assert np.abs(full).max() > 0
        assert np.allclose(slow, full * (0.25 if "conv" in name else 1), atol=1e-6), name


def test_optimizer_has_the_recipes_weight_decay_and_clipping():
    optimizer = make_optimizer(Recipe(optimizer="adamw", weight_decay=0.1, clip_norm=2.0), 10)
    assert (type(optimizer), optimizer.weight_decay, optimizer.global_clipnorm) == (keras.optimizers.AdamW, 0.1, 2.0)
    assert make_optimizer(Recipe(), 10).weight_decay is None


def test_smoothed_labels_give_a_share_of_the_loss_to_all_classes(params, tasks, train):
    recipe = {"pretrain.label_smoothing": 0.3, "pretrain.learning_rate": 1e-30, "pretrain.epochs": 1}
    model, history = train(params(**recipe), task := tasks["source"])
    log_p = log_probabilities(model, task.test.x)
    own = log_p[np.arange(len(log_p)), task.test.y]
    assert history.curves["val_loss"][0] == pytest.approx(-(0.7 * own + 0.3 * log_p.mean(axis=1)).mean(), rel=1e-4)
    assert history.curves["val_accuracy"][0] == pytest.approx((log_p.argmax(axis=1) == task.test.y).mean())


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_images_have_the_same_share_of_labels_and_repeat_by_seed_and_epoch(tasks, name):
    train = tasks["source"].train
    flat = np.full_like(train.x, 0) + (50 * train.y).astype(np.uint8)[:, None, None, None]  # an image shows its label
    mixing = Mixing(["flip", name], seed=3)
    data = make_dataset(flat, np.eye(5, dtype="f4")[train.y], 32, ShuffleOrder(len(flat), 3), mixing)

    def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
        mixing.on_epoch_begin(number)
        batches = [(images.numpy(), labels.numpy()) for images, labels in data]
        return tuple(map(np.concatenate, zip(*batches, strict=True)))

    images, labels = epoch(0)
    if name == "mixup":  # CutMix's labels have the share of a box that the image's border may cut
        assert np.allclose(images.mean(axis=(1, 2, 3)), labels @ (50 * np.arange(5)), atol=0.01)
    assert np.allclose(labels.sum(axis=1), 1)
    assert ((labels > 0).sum(axis=1) == 2).any()
    other, again = epoch(1), epoch(0)
    assert all(map(np.array_equal, again, (images, labels)))
    assert not np.array_equal(other[1], labels)


def test_linear_probe_then_fine_tuning_starts_where_the_probe_ended(params, run, capsys):
    params(**{"finetune_fc.start": "models/finetune_output.keras", "finetune_fc.learning_rate": 1e-30})
    run("prepare", "pretrain", "finetune_output", "finetune_fc")
    assert "finetune_fc: starts from models/finetune_output.keras, trained on ['fox', " in capsys.readouterr().out
    probe, both = (read_json(stage_folder(stage) / "record.json") for stage in ("finetune_output", "finetune_fc"))
    assert both["test_loss"] == probe["test_loss"]  # the head is kept
    params(**{"finetune_fc.learning_rate": 0.001})
    run("finetune_fc")
    control = read_json(stage_folder("finetune_fc") / "record.json")["control"]
    params(**{"pretrain.epochs": 0})
    run("pretrain", "finetune_output", "finetune_fc")
    assert {k: read_json(stage_folder("finetune_fc") / "record.json")[k] for k in control} == control
