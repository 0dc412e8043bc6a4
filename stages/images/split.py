"""Split datasets into the source task and the target task, and each task into train, validation and test."""

import zlib
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.images.classes import choose_classes
from stages.images.dataset import Dataset
from stages.settings import Data
from stages.shared.errors import SettingError, UserError, short_repr
from stages.shared.tasks import SPLITS, Side, Split, Task

MAX_LISTED = 20  # pictures with several labels


def split(source: Dataset, target: Dataset, data: Data, seed: int) -> dict[Side, Task]:
    """Make the two tasks of two datasets, which may be the same object.

    Equal images, and those of one group (``data.groups``), are never in two of train, validation and test; nor are the
    target's test images in the source's train or validation split. Raises `SettingError` if the datasets lack the
    classes or images that `data` asks for.
    """
    one = target is source
    sides: dict[Side, Dataset] = {"source": source, "target": target}
    labels = {side: choose_classes(data, side, dataset.class_names, one) for side, dataset in sides.items()}
    if one and (both := [source.class_names[label] for label in labels["target"] if label in labels["source"]]):
        raise SettingError("data.target_classes", both, "none of data.source_classes")
    parts = {side: _Images(dataset, labels[side], data, seed, side) for side, dataset in sides.items()}
    if data.groups and not any(images.grouped for images in parts.values()):
        expected = f"a pattern found in names such as {short_repr(str(parts['target'].table['name'].iloc[0]))}"
        raise SettingError("data.groups", data.groups, expected)
    for images in parts.values():
        images.assign_splits()
    tests = parts["target"].table
    seen = parts["source"].table["hash"].isin(tests["hash"][tests["split"] == "test"])
    parts["source"].leave_out(seen, "test images of the target task")
    kept = one and len(labels["source"]) == len(labels["target"])
    of_dataset = f"{len(labels['target'])} classes of {'the same' if one else 'another'} dataset"
    parts["target"].notes.append(f"head: auto {'keeps the' if kept else 'starts a new'} output layer: {of_dataset}")
    return {side: images.make_task(one) for side, images in parts.items()}


class _Images:
    """The images of a task: a table with their split, row there, label `y`, name, hash, and group."""

    def __init__(self, dataset: Dataset, labels: list[int], data: Data, seed: int, side: Side):
        self.dataset, self.data, self.seed, self.side = dataset, data, seed, side
        self.class_names = [dataset.class_names[label] for label in labels]
        self.notes, self.warnings = list(dataset.notes), list[str]()
        number = np.full(len(dataset.class_names), -1)
        number[labels] = np.arange(len(labels))
        parts = []
        for name, part in dataset.splits.items():
            rows = np.flatnonzero(number[part.y] >= 0)
            hashes = (blake2b(np.ascontiguousarray(part.x.stored[i]).data, digest_size=16) for i in part.x.rows[rows])
            columns = {"row": rows, "y": number[part.y[rows]], "name": part.names[rows]}
            parts.append(pd.DataFrame({"given": name, "split": name, **columns, "hash": [h.digest() for h in hashes]}))
        self.table = pd.concat(parts, ignore_index=True)
        self.grouped = False
        self.table["group"] = self._find_groups()

    def _find_groups(self) -> np.ndarray:
        """Number the groups of images that belong in one split: equal ones, and those of one patient or video."""
        equal, found = pd.factorize(self.table["hash"])
        if copies := len(equal) - len(found):
            self.notes.append(f"exact duplicates: {copies}")
            self._warn_of_several_labels()
        names, pattern = self.table["name"].astype(str), self.data.groups
        files = ~names.str.fullmatch(r"x_(train|test)\[\d+\]")  # not rows of arrays
        key = names.where(files).str.extract(pattern, expand=False) if pattern else names.map(self.dataset.groups)
        keyed = key.notna().to_numpy()
        if not keyed.any():
            return equal
        self.grouped = True
        code, keys = pd.factorize(key[keyed])
        edges = coo_array((np.ones(len(code)), (equal[keyed], len(found) + code)), shape=[len(found) + len(keys)] * 2)
        self.notes.append(f"groups, none of them in two splits: {len(keys)}")
        return pd.factorize(connected_components(edges)[1][equal])[0]

    def _warn_of_several_labels(self) -> None:
        images = self.table[self.table.groupby("hash")["y"].transform("nunique") > 1]
        labelled = images["name"].str.cat([short_repr(self.class_names[y]) for y in images["y"]], " is ")
        pictures = labelled.groupby(images["hash"], sort=False).agg(" but ".join)
        more = f", and {len(pictures) - MAX_LISTED} more" if len(pictures) > MAX_LISTED else ""
        if len(pictures):
            listed = ", ".join(pictures[:MAX_LISTED])
            self.warnings.append(f"pictures with several labels ({len(pictures)}): {listed}{more}")

    def assign_splits(self) -> None:
        """Hold out test and validation images where the dataset has no such split, and leave out what is in two."""
        table, fraction = self.table, self.data.validation_fraction
        if "test" not in self.dataset.splits:
            table.loc[self._hold_out(self.data.test_fraction), "split"] = "test"
            self.notes.append(f"test images split off: {(table['split'] == 'test').sum()}")
        self.leave_out(table["group"].isin(table["group"][table["split"] == "test"]), "test images, too")
        if "validation" in self.dataset.splits and fraction:
            expected = f"0: {self.dataset.name} has a validation split of its own"
            raise SettingError("data.validation_fraction", fraction, expected)
        if fraction:
            table.loc[self._hold_out(fraction), "split"] = "validation"
        of_validation = table["group"].isin(table["group"][table["split"] == "validation"])
        self.leave_out(of_validation & (table["split"] == "train"), "validation images, too")

    def leave_out(self, images: pd.Series, why: str) -> None:
        """Leave images out of training and validation."""
        images &= self.table["split"].isin(["train", "validation"])
        if images.any():
            self.table.loc[images, "split"] = ""
            self.warnings.append(f"images left out of training, as they are {why} ({images.sum()})")

    def _hold_out(self, fraction: float) -> pd.Series:
        """Choose a fraction of the training images of each class, at least one and never all, in whole groups."""
        held: list[int] = []
        for name, own, order in self._training_images():
            if len(order) < 2:
                problem = f"class {short_repr(name)} has {len(order)} different pictures"
                raise UserError(f"{self.dataset.name}: {problem}, expected at least 2, one of them to hold out")
            sizes = own.drop_duplicates("hash")["group"].value_counts().to_dict()  # copies do not count
            images = sum(sizes.values())
            left = min(max(1, round(fraction * images)), images - 1)
            fitting = []
            for group in order[::-1]:
                if sizes[group] <= left:
                    fitting.append(group)
                    left -= sizes[group]
            held += fitting or [min(sizes, key=sizes.__getitem__)]
        return (self.table["split"] == "train") & self.table["group"].isin(held)

    def _training_images(self) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
        """Yield each class's name, training images, and their groups, permuted.

        The permutation depends on nothing but these groups, the name, and the seed.
        """
        training = self.table[self.table["split"] == "train"]
        for y, name in enumerate(self.class_names):
            own, random = training[training["y"] == y], np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            yield name, own, random.permutation(np.unique(own["group"]))

    def make_task(self, one_dataset: bool) -> Task:
        """Make the task; ``source_per_class`` or ``target_per_class`` selects training images.

        A smaller number selects the beginning of a larger one: an image of each class in turn.
        """
        table, key = self.table, f"data.{self.side}_per_class"
        per_class, selected = getattr(self.data, f"{self.side}_per_class"), []
        tested = set(table["y"][table["split"] == "test"])
        if missing := [name for y, name in enumerate(self.class_names) if y not in tested]:
            raise SettingError(f"data.{self.side}_classes", missing, "classes with test images")
        for y, (name, own, order) in enumerate(self._training_images()):
            if len(own) < (per_class or 1):
                counts = table["split"][table["y"] == y].replace("", "left out").value_counts().to_dict()
                expected = f"{per_class or 'some'} for training, but {short_repr(name)} has the images {counts}"
                raise SettingError(key, per_class, expected)
            place = own["group"].map(pd.Series(range(len(order)), order))
            selected.append(place.sort_values(kind="stable").index[:per_class])
        splits = {name: table[table["split"] == name] for name in SPLITS}
        if per_class:
            splits["train"] = table.loc[np.stack(selected, axis=1).ravel()]
        train, validation, test = map(self._make_split, splits.values())
        said, dataset = (tuple(self.notes), tuple(self.warnings)), self.dataset
        parts = train, validation, test
        return Task(dataset.name, self.class_names, *parts, *said, self.data.fit, one_dataset, dataset.resized)

    def _make_split(self, images: pd.DataFrame) -> Split:
        """Select images, which come from one split of the dataset."""
        given = self.dataset.splits[images["given"].iloc[0] if len(images) else "train"]
        x = given.x.take(images["row"].to_numpy())
        return Split(x, images["y"].to_numpy(), images["name"].to_numpy(str))
