"""Read small YAML files with DVC's parser: YAML 1.2, where `yes` and `1:30` are texts and `1e-05` is a number."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from stages.shared.errors import UserError, one_line

MAX_BYTES = 100_000


def parse_yaml(text: str, aliases: bool = False) -> Any:
    """Parse YAML 1.2; raises `ValueError` if it is none, or has aliases, which can expand beyond any memory."""
    parser = YAML(typ="safe", pure=True)
    try:
        for event in () if aliases else parser.parse(text):
            if isinstance(event, AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1}: an alias (*), expected plain values")
        return parser.load(text)
    except YAMLError as error:
        if isinstance(error, MarkedYAMLError) and error.problem_mark:
            raise ValueError(f"line {error.problem_mark.line + 1}: {error.problem}") from None
        raise ValueError(one_line(error)) from None


def read_yaml(path: Path, expected: str) -> Any:
    """Read a YAML file; raises `UserError` with one line if it is missing, too large, or not plain YAML."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file, expected {expected}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UserError(f"{path}: {size} bytes, expected {expected}: at most {MAX_BYTES} bytes")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected {expected}") from None
    except (ValueError, RecursionError) as error:  # not YAML, not UTF-8, or no such number
        raise UserError(f"{path}: no valid YAML: {one_line(error)}") from None
