"""Choose the classes of the source task and of the target task, by number or by name."""

import json
import re
import unicodedata

from stages.settings import Data
from stages.shared.errors import SettingError, short_repr
from stages.shared.tasks import Side

BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # control characters that reverse text


def check_class_names(names: list[str]) -> list[str]:
    """Return class names, in Unicode's composed form (NFC), if tables, pages and terminals can show them.

    Raises `ValueError` that says what is expected.
    """
    names = [unicodedata.normalize("NFC", name) for name in names]
    if len(set(names) - {""}) < len(names):
        raise ValueError("different texts")
    for name in names:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDIRECTIONAL for c in name):
            raise ValueError(f"no control characters as in {short_repr(name)}")
        if re.search(r"<[a-zA-Z/!?]", name):  # `dvc plots` does not escape it
            raise ValueError(f"no tag as in {short_repr(name)}: it would become part of the page of `dvc plots`")
    return names


def choose_classes(data: Data, side: Side, names: list[str], one_dataset: bool) -> list[int]:
    """Return the labels of a task's classes, indices into the dataset's class `names`.

    `auto` is the first half of one dataset's classes for the source task and the others for the target task, all
    classes of two datasets. Raises `SettingError` for unknown, ambiguous, repeated or too few classes.
    """
    key, classes = f"data.{side}_classes", getattr(data, f"{side}_classes")
    if isinstance(classes, str):
        halved = classes == "auto" and one_dataset
        if len(names) < (4 if halved else 2):
            expected = "at least 4 classes, two for each task," if halved else "at least 2 classes,"
            raise SettingError(key, classes, f"{expected} but the dataset has {short_repr(names)}")
        half = len(names) // 2 if halved else 0
        return list(range(half) if halved and side == "source" else range(half, len(names)))
    labels = [_find_label(key, given, names) for given in classes]
    if len(set(labels)) < len(labels):
        raise SettingError(key, classes, "each class once, by number or by name")
    return labels


def _find_label(key: str, given: int | str, names: list[str]) -> int:
    """Find a class by its name, or by its number if no other class has that as its name."""
    text = unicodedata.normalize("NFC", str(given))
    labels = [label for label, name in enumerate(names) if given == label or text == name]
    if not labels:
        raise SettingError(key, given, f"a number below {len(names)} or one of {short_repr(names)}")
    if len(labels) > 1:
        other = json.dumps(names[int(given)], ensure_ascii=False)
        expected = f"an unambiguous class: write {json.dumps(text)} in quotes for the class, {other} for number {given}"
        raise SettingError(key, given, expected)
    return labels[0]
