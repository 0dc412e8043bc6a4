"""Write ``settings.md`` beside this file from the schema and ``dvc.yaml``: ``python docs/make_settings.py``."""

import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pandas as pd
import yaml
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stages import notebook  # noqa: E402
from stages.settings import Settings  # noqa: E402

PAGE = ROOT / "docs/settings.md"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false", NoneType: "null"}
BOUNDS = {
    "Le": ("at most", "le"),
    "Ge": ("at least", "ge"),
    "Gt": ("above", "gt"),
    "Lt": ("below", "lt"),
    "MinLen": ("at least", "min_length"),
}

TEXT = """# Settings

All of `params.yaml`. `dvc exp run -S finetune_fc.epochs=3` changes one for one run; several `-S` may be given. Lists
want quotes: `-S 'finetune_fc.trainable=[fc1,fc2,output]'`. With `--queue`, `-S 'seed=range(1,7)'` and `-S 'seed=1,2'`
queue one run for each value.

{settings}

## What is computed again

A stage runs again when a setting, a file of code or a data file that it uses changes. The stages that use the stage's
outputs then run only if one of these came out different, byte for byte: a change that makes no difference stops there.

Settings: the last columns above. `report` writes every setting into the report and reads them all. Files:

{files}

## A further way of fine-tuning

No Python is needed for a third variant, say `finetune_all`:

1. `params.yaml`: copy the section `finetune_fc` to `finetune_all` and change what it is to do, for example
   `trainable: [conv1, conv2, fc1, fc2, output]`.
2. `dvc.yaml`: copy the stage `finetune_fc` to `finetune_all`, every `finetune_fc` in it replaced.
3. `dvc.yaml`, stage `report`: add `finetune_all` at the end of `cmd`; copy every line with `finetune_fc` in `deps`,
   `params` and `outs` likewise, and in `plots:` where the variant is to be seen.
"""


def users(entry: str, kind: str) -> list[str]:
    """The stages that declare a setting or a file."""
    return [name for name, stage in PIPELINE.items() if entry in stage[kind]]


def outputs(stage: str) -> set[str]:
    """The files that a stage writes."""
    entries = [entry for kind in ("outs", "plots", "metrics") for entry in PIPELINE[stage].get(kind, [])]
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def after(stages: list[str]) -> list[str]:
    """The stages that use what these write, or what those write that do, and so on."""
    found = list(stages)
    for stage in found:  # grows while it is gone through
        found += [name for name, s in PIPELINE.items() if outputs(stage) & set(s["deps"]) and name not in found]
    return [name for name in PIPELINE if name in found and name not in stages]


def columns(entry: str, kind: str) -> dict[str, str]:
    readers = users(entry, kind)
    listed = {"read by": readers, "may run after these": after(readers)}
    return {column: " ".join(f"`{name}`" for name in stages) for column, stages in listed.items()}


def described(annotation: Any) -> str:
    """A type annotation in words."""
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(described(part) for part in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of: {described(get_args(annotation)[0])}"
    if get_args(annotation):
        values = [value for value in get_args(annotation) if isinstance(value, str)]
        return ", ".join(values) or described(get_args(annotation)[0])
    return NAMES[annotation]


def bounds(metadata: list) -> list[str]:
    """The constraints of a field in words."""
    found = []
    for constraint in metadata:
        words, attribute = BOUNDS.get(type(constraint).__name__, ("", ""))
        if words:
            found.append(f"{words} {getattr(constraint, attribute)}{' long' if attribute == 'min_length' else ''}")
    return found


def rows(model: type[BaseModel], defaults: dict, prefix: str = "") -> list[dict]:
    """A row of the table for every leaf of a section."""
    found = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += rows(field.annotation, defaults, f"{key}.")
        else:
            found.append(
                {
                    "setting": f"`{key}`",
                    "allowed": "; ".join([described(field.annotation), *bounds(field.metadata)]),
                    "default": f"`{json.dumps(defaults[key])}`",
                    "meaning": field.description,
                    **columns(key, "params"),
                }
            )
    return found


def page() -> str:
    """The whole page, Markdown."""
    defaults = notebook.SETTINGS
    files = sorted({dep for stage in PIPELINE.values() for dep in stage["deps"] if dep.startswith("stages/")})
    return TEXT.format(
        settings=pd.DataFrame(rows(Settings, defaults)).to_markdown(index=False),
        files=pd.DataFrame([{"file": f"`{f}`", **columns(f, "deps")} for f in files]).to_markdown(index=False),
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
