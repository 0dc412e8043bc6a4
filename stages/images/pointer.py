"""A pointer to a dataset's archive; how it is downloaded: ``stages/download.py``."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from stages import download
from stages.images.dataset import problem_of_names


class Pointer(download.Pointer):
    """A dataset's archive: how it is laid out, and the classes in it."""

    example: ClassVar = "data/raw/cifar10.yaml"
    keras_folder: ClassVar = "datasets"
    without: ClassVar = "`dvc exp run -S data.path=data/raw/digits.npz` runs the same pipeline on the built-in digits."
    format: Literal["cifar10-python", "npz"]
    class_names: list[str] = Field(min_length=2)

    @field_validator("class_names")
    @classmethod
    def _can_be_shown(cls, names: list[str]) -> list[str]:
        if problem := problem_of_names(names):
            raise ValueError(problem)
        return names


def fetch(path: Path) -> tuple[Pointer, Path]:
    """Return the pointer at `path` and its archive, see `download.fetch`."""
    return download.fetch(path, Pointer, "a pointer (.yaml), arrays (.npz) or a folder of pictures: data.path")
