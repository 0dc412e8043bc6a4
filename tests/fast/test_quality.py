"""The checks of the data: near-duplicates, labels that a model finds unlikely, small classes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stage_outputs import make_result, make_task
from stages.reporting import quality


def photo(number: int) -> np.ndarray:
    """Make an image of smooth random shapes, uint8 (40, 30, 3)."""
    pixels = np.random.default_rng(number).integers(0, 256, (7, 6, 3), "u1")
    return np.asarray(Image.fromarray(pixels).resize((30, 40), Image.Resampling.BICUBIC))


def test_copies_are_found_across_splits_first_and_other_photos_are_not():
    photos = np.stack([photo(number) for number in range(40)])
    darker, smaller = photos[0] // 2, Image.fromarray(photos[1]).resize((15, 20)).resize((30, 40))
    test, train = np.stack([darker, smaller, photos[2], photos[2]]), photos[[*range(2), *range(3, 40), 39]]
    task = make_task(["ant", "bee", "cow"], train=len(train), test=len(test))
    task = replace(task, **{name: replace(getattr(task, name), x=x) for name, x in (("train", train), ("test", test))})
    counts, in_training, closest = quality.near_duplicates(task)
    pairs = {splits: n for splits, n in counts["pairs"].items() if n}
    assert pairs == {"test, test": 1, "test, train": 2, "train, train": 1}
    assert (counts["test_images"], in_training.tolist()) == (2, [True, True, False, False])
    assert counts["pairs_with_other_labels"] == 2  # labels go by row
    assert (closest["split"] + closest["other_split"]).tolist() == [*["testtrain"] * 2, "testtest", "traintrain"]
    assert set(closest["other_image"][:2]) == {"x_train[0]", "x_train[1]"}
    assert closest["bits"][2:].tolist() == [0, 0]


@pytest.mark.parametrize(("limit", "pixels"), [(149, 1), (150, 0)])  # too many, too much alike
def test_images_that_cannot_be_told_apart_are_not_counted(monkeypatch, limit, pixels):
    monkeypatch.setattr(quality, "MAX_IMAGES", limit)
    task = make_task(["ant", "bee"], train=90, test=60)
    task = replace(task, train=replace(task.train, x=task.train.x * pixels))
    assert quality.near_duplicates(task) is None


def test_unlikely_labels_are_those_of_wrong_predictions_on_held_out_images_the_least_likely_first():
    task = make_task(["ant", "bee", "cow"], validation=6, test=60)
    found = quality.unlikely_labels(make_result("pretrain", task, wrong=[5, 50]))
    assert found["image"].tolist()[0] == "x_test[50]"
    assert set(found["image"]) == {"x_test[5]", "x_test[50]", "x_validation[0]", "x_validation[1]"}
    assert found["label_probability"].is_monotonic_increasing
    assert found.iloc[0][["actual", "predicted"]].tolist() == ["cow", "ant"]


def test_small_classes_are_counted():
    assert quality.small_classes(make_task(["ant", "bee"], train=40, test=20)) == {}
    assert quality.small_classes(make_task(["ant", "bee"], train=40, test=19)) == {"bee": {"train": 20, "test": 9}}
