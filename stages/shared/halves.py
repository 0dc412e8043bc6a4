"""The two halves of a dataset, as `prepare` writes them and all other stages read them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stages.shared.files import PREPARED
from stages.shared.npz import Pieces, read_npz, write_npz

PARTS = ("train", "validation", "test")
Side = Literal["source", "target"]


@dataclass(frozen=True)
class Part:
    """Images `x`, uint8 (N, H, W, C), 0-255, and labels `y`, int64 (N,), indices into the half's class names.

    The images are mapped from the file: only what is used is in memory, and the system may take that back.
    """

    x: Any  # np.ndarray; while it is being prepared, `Pieces`
    y: np.ndarray


@dataclass(frozen=True)
class Half:
    """The source classes' images, or the target classes'; `dataset` is the name of where they are from."""

    dataset: str
    class_names: list[str]
    train: Part
    validation: Part
    test: Part
    notes: tuple[str, ...] = ()  # on how the dataset was read

    @property
    def counts(self) -> dict[str, int]:
        """The number of images in each part."""
        return {part: len(getattr(self, part).y) for part in PARTS}

    @property
    def curves_part(self) -> Literal["validation", "test"]:
        """The part that learning curves are drawn on: the test images, as in the notebook, if none are held out."""
        return "validation" if len(self.validation.y) else "test"


def write_half(side: Side, half: Half) -> None:
    """Write ``data/prepared/<side>.npz``; raises `UserError` if that fails."""
    arrays: dict[str, np.ndarray | Pieces] = {"class_names": np.array(half.class_names)}
    for part in PARTS:
        arrays |= {f"x_{part}": getattr(half, part).x, f"y_{part}": getattr(half, part).y}
    arrays["dataset"] = np.array([half.dataset])
    if half.notes:
        arrays["notes"] = np.array(half.notes)
    write_npz(PREPARED / f"{side}.npz", arrays)


def read_half(side: Side) -> Half:
    """Read ``data/prepared/<side>.npz``; raises `UserError` if it is missing or damaged."""
    keys = tuple(f"{axis}_{part}" for part in PARTS for axis in "xy")
    images = tuple(key for key in keys if key[0] == "x")
    arrays = read_npz(PREPARED / f"{side}.npz", (*keys, "class_names", "dataset"), ("notes",), mapped=images)
    train, validation, test = (Part(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in PARTS)
    notes = tuple(arrays["notes"].tolist()) if "notes" in arrays else ()
    return Half(str(arrays["dataset"][0]), arrays["class_names"].tolist(), train, validation, test, notes)
