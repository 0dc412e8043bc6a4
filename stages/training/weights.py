"""Find the weights that a backbone starts from."""

from pathlib import Path
from typing import ClassVar

from stages.download import Pointer, fetch
from stages.shared.errors import UserError
from stages.shared.inputs import refuse_untracked
from stages.shared.yaml_files import read_yaml

EXPECTED = "a file of weights (.keras, .h5), a pointer (.yaml), imagenet.yaml or random.yaml: model.weights"


class WeightsPointer(Pointer):
    """A backbone's weights."""

    example: ClassVar = "docs/settings.md"
    keras_folder: ClassVar = "models"
    alternative: ClassVar = "`dvc exp run -S model.weights=data/raw/random.yaml` starts from random weights."


def find_weights(path: Path) -> Path | str:
    """Return the file with a backbone's weights, downloaded if `path` is a pointer, or ``random`` or ``imagenet``.

    Raises `UserError` with the problem and what was expected.
    """
    if path.suffix in (".yaml", ".yml"):
        values = read_yaml(path, EXPECTED)
        named = values.get("weights") if isinstance(values, dict) else None
        return named if named in ("random", "imagenet") else fetch(path, WeightsPointer.read(path, EXPECTED))
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected {EXPECTED}")
    refuse_untracked(path)
    return path
