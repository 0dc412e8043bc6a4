"""Check the data: near-duplicates, classes with few images, labels that the models find unlikely."""

from typing import Any

import numpy as np
import pandas as pd

from stages.predictions import probability_columns
from stages.reporting.results import ModelResult, Results, is_correct
from stages.shared.arrays import LazyArray
from stages.shared.tasks import SPLITS, Task

MAX_IMAGES = 100_000  # compared in pairs, a matter of seconds
# Bits of 128 that differ. Of CIFAR-10's 10,000 test images 233 are so near to a training image, and nearly all of these
# pairs show the same photo; with 18 bits it is 282, and many pairs only have the same composition.
MAX_DISTANCE = 16
ALIKE = 0.05  # of the pairs have two labels, and there are more pairs than images: such as handwritten digits
SHOWN = 20  # pairs, labels
FEW = {"train": 20, "test": 10}  # images of a class


def difference_hash(x: Any) -> np.ndarray:
    """Compute perceptual hashes of images, uint8 (N, H, W, C): uint64 (N, 2), 128 bits.

    An image is averaged to 9x9 grey values; a bit says whether the right neighbour of one is brighter (64 bits), or the
    lower one (64 bits).
    """
    height, width, channels = x.shape[1:]
    rows, columns = _averages(height), np.repeat(_averages(width), channels, axis=1) / channels
    hashes = [np.empty((0, 2), np.uint64)]
    for batch in LazyArray.of(x).batches():
        lines = batch.reshape(-1, height, width * channels).astype(np.float32)
        grey = np.round(rows @ (lines @ columns.T))  # whole numbers: areas of one colour are equal
        brighter = np.stack([grey[:, :-1, 1:] > grey[:, :-1, :-1], grey[:, 1:, :-1] > grey[:, :-1, :-1]], axis=1)
        hashes.append(np.packbits(brighter.reshape(len(batch), -1), axis=1).view(np.uint64))
    return np.concatenate(hashes)


def _averages(side: int) -> np.ndarray:
    """Make the matrix that averages `side` values to nine, float32 (9, side)."""
    edges, pixel = np.linspace(0, side, 10)[:, None], np.arange(side)
    overlap = np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)
    return (np.clip(overlap, 0, None) * 9 / side).astype(np.float32)


def near_duplicates(task: Task) -> tuple[dict[str, Any], np.ndarray, pd.DataFrame] | None:
    """Find pairs of images whose hashes differ in at most `MAX_DISTANCE` bits.

    Returns numbers for ``details.json``; which test images are in such a pair with a training image, bool (N,); at most
    `SHOWN` pairs, the closest first, those across splits before others: columns image, label, split, other_image,
    other_label, other_split, bits. Returns None for more than `MAX_IMAGES` images, or if different ones look `ALIKE`.
    """
    names = SPLITS[::-1]  # test images first, so that an image's partners across splits come after it
    splits, classes = [getattr(task, name) for name in names], np.array(task.class_names)
    side = np.repeat(range(3), [len(split.y) for split in splits])
    if len(side) > MAX_IMAGES:
        return None
    first, second = np.concatenate([difference_hash(split.x) for split in splits]).T.copy()
    labels = np.concatenate([split.y for split in splits])
    pairs, other_labels, in_training = np.zeros((3, 3), int), 0, np.zeros(len(side), bool)
    closest = []  # the closest partner of each image
    for i in range(len(side)):
        near = i + 1 + np.flatnonzero(np.bitwise_count(first[i] ^ first[i + 1 :]) <= MAX_DISTANCE)
        bits = np.bitwise_count(first[near] ^ first[i]) + np.bitwise_count(second[near] ^ second[i])
        near, bits = near[bits <= MAX_DISTANCE], bits[bits <= MAX_DISTANCE]
        if len(near):
            pairs[side[i]] += np.bincount(side[near], minlength=3)
            other_labels += int((labels[near] != labels[i]).sum())
            in_training[i] = 2 in side[near]
            best = (bits + 1000 * (side[near] == side[i])).argmin()
            closest.append((side[near[best]] == side[i], bits[best], i, near[best]))
    if pairs.sum() > len(side) and other_labels > ALIKE * pairs.sum():
        return None
    named = {f"{names[i]}, {names[j]}": int(pairs[i, j]) for i, j in zip(*np.triu_indices(3), strict=True)}
    in_training = in_training[side == 0]
    counts = {"test_images": int(in_training.sum()), "pairs": named, "pairs_with_other_labels": other_labels}
    images = pd.DataFrame({"image": np.concatenate([split.names for split in splits]), "label": classes[labels]})
    images["split"] = np.array(names)[side]
    _, bits, one, other = np.array(sorted(closest)[:SHOWN], int).reshape(-1, 4).T
    left, right = (images.iloc[rows].reset_index(drop=True) for rows in (one, other))
    return counts, in_training, left.join(right.add_prefix("other_")).assign(bits=bits)


def unlikely_labels(result: ModelResult) -> pd.DataFrame:
    """List held-out images by the probability of their label, the lowest first, where the model predicts another class.

    Columns image, actual, predicted, probability, label_probability; at most `SHOWN` rows. The model was not trained on
    these images; the probability is the label's "self-confidence" (Northcutt et al., 2021).
    """
    table = pd.concat([result.predictions, result.validation])  # without validation images it is None
    p = table[probability_columns(result.task.class_names)].to_numpy()
    labels = np.concatenate([result.task.test.y, result.task.validation.y])
    table = table[["image", "actual", "predicted", "probability"]].assign(label_probability=p[range(len(p)), labels])
    wrong = table[~is_correct(table)]
    return wrong.sort_values("label_probability", kind="stable").head(SHOWN)


def small_classes(task: Task) -> dict:
    """Count the images of the classes that have fewer than `FEW` of a split."""
    counts = {name: np.bincount(getattr(task, name).y, minlength=len(task.class_names)) for name in FEW}
    table = pd.DataFrame(counts, index=task.class_names)
    return table[(table < pd.Series(FEW)).any(axis=1)].to_dict("index")


def check(results: Results) -> dict[str, dict[str, Any]]:
    """Check the data of the source and the target task.

    Returns for each: task, details (for ``details.json``), the closest pairs of `near_duplicates`, unlikely_labels by
    the most accurate model, and its stage.
    """
    checked = {}
    for side, models in (("source", [results.source]), ("target", results.tuned)):
        task, best = models[0].task, max(models, key=lambda r: r.metrics["test_accuracy"])
        counts, in_training, closest = near_duplicates(task) or (None, np.array([]), None)
        if counts:
            others = {r.stage: r.correct[~in_training] for r in models}
            counts["accuracy_without"] = {name: float(c.mean()) if len(c) else None for name, c in others.items()}
        details = {"near_duplicates": counts, "small_classes": small_classes(task)}
        checked[side] = {"task": task, "details": details, "closest": closest, "stage": best.stage}
        checked[side]["unlikely_labels"] = unlikely_labels(best)
    return checked
