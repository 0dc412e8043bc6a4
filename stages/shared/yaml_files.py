"""Read small YAML files as DVC does: YAML 1.2, where `yes` and `1:30` are texts and `1e-05` is a number."""

import re
from pathlib import Path
from typing import Any

import yaml

from stages.shared.errors import UserError, one_line

MAX_BYTES = 100_000
# https://yaml.org/spec/1.2.2/#103-core-schema, and underscores in numbers, which DVC reads, too
CORE_SCHEMA = [
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "|~|null|Null|NULL", ["", "~", "n", "N"]),
    ("int", "[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
]


class _Loader(yaml.SafeLoader):
    """Load YAML 1.2 (PyYAML by itself reads 1.1); refuse aliases, which can expand beyond any memory."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - filled below
    allow_aliases = False

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if not self.allow_aliases and self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: an alias (*), expected plain values")
        return super().compose_node(parent, index)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _kind, _pattern, _first in CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def parse_yaml(text: str, aliases: bool = False) -> Any:
    """Parse YAML 1.2; raises `yaml.YAMLError` or `ValueError` if it is none, or has aliases that are not allowed."""
    return yaml.load(text, type("Loader", (_Loader,), {"allow_aliases": aliases}))


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no such number
        raise UserError(f"{path}: no valid YAML: {one_line(error)}") from None
