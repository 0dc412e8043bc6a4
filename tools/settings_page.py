"""Write ``docs/settings.md`` from the settings' schema and ``dvc.yaml``: ``python -m tools.settings_page``.

With ``--params``, print ``params.yaml`` with every default and its help instead.
"""

import json
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pandas as pd
import yaml
from pydantic import BaseModel

from stages.settings import Settings
from stages.shared.inputs import stage_reads

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/settings.md"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = {int: "whole number", float: "number", str: "text", bool: "true, false", NoneType: "null"}
BOUNDS = {"Le": "at most", "Ge": "at least", "Gt": "above", "Lt": "below"}

TEXT = """# Settings

Every setting of `params.yaml`; `make docs` writes this page from `stages/settings.py` and `dvc.yaml`. To change a
setting for one run, type `dvc exp run -S finetune_fc.epochs=3`; repeat `-S` to change several. Quote lists:
`-S 'finetune_fc.trainable=[fc1,fc2,output]'`. With `--queue`, `-S 'seed=range(1,7)'` or `-S 'seed=1,2'` queues one run
for each value. `python -m tools.settings_page --params > params.yaml` restores every default.

{settings}

If DVC says «Could not override», the name is misspelt: look it up here. Do not add the `+` that DVC suggests. Values
with spaces, umlauts or brackets need [two pairs of quotes](photos.md#quoting).

## Experiments

`dvc exp run` trains with changed settings and keeps the result under a name. `--temp` runs it in a copy of your folder,
uncommitted edits included; `--force` repeats it under its name, with every stage. Compare one with your last commit,
take it over, or go back to what you committed (the last line discards edits):

```
dvc metrics diff HEAD three-epochs
dvc params diff HEAD three-epochs
dvc exp apply one-epoch
touch params.yaml && git restore . && dvc checkout
```

Or edit `params.yaml` and type `dvc repro`.

## Share experiments, free disk space

Commit the remote first, or experiments are pushed without their data. Git keeps code, settings and reports, the remote
images and models:

```
dvc remote add --default store ~/dvc-store    # or s3://bucket, ssh://host/path, ...
git commit --all -m "A remote"
dvc push && git push
dvc exp run --temp -n shared -S finetune_fc.epochs=4
dvc exp push origin shared
make export    # models/export/: LiteRT, SavedModel, with ONNX=1 ONNX, and a model card
```

A colleague types `git clone`, `make setup` and `dvc pull`, after which `dvc repro` trains nothing;
`dvc exp pull origin shared` and `dvc exp apply shared` bring the experiment. To free disk space, keep only what this
folder, your branches' tips and the remaining experiments use:

```
dvc exp remove photos shared
dvc gc --workspace --all-branches --all-experiments --force
```

## Image sizes

Use images of 32 to 96 pixels with the notebook's network. It has no pooling after `pool`, so its first dense layer
grows with the image: 1.6 million weights for 32x32 pixels, 17 million for 96x96, 99 million for 224x224 (1.2 GB of
models a run). `pretrain` prints the number before training.

## Backbones

`model.backbone` uses a network of `keras.applications` as the base, under `fc1`; with `file`, the base is the Keras
model that `model.weights` names. Otherwise `model.weights` names initial weights: `data/raw/imagenet.yaml` (Keras
downloads them), a `.keras` or `.h5` file, a pointer with `name`, `urls` and `sha256`, or `data/raw/random.yaml`, the
control. [Your own pictures](photos.md#a-pretrained-backbone) has examples.

`pretrain.epochs=0` keeps the initial weights. `trainable` takes layer names, their prefixes (`expanded_conv_10`,
`conv5_block3`, `block6`), or `backbone`; the error message for any other name lists the layers. Frozen layers run in
inference mode, batch normalisation included, and their outputs are cached.

## What reruns

A stage reruns if a setting, a code file or a data file that it uses changes. Later stages rerun only if its outputs
change, byte for byte. While a stage trains, `dvc plots show` in a second terminal plots the epochs so far.

The last columns of the table above show which stages a setting reruns; `report` reads every setting. This table shows
the same for code:

{files}

## A third way of fine-tuning

A third variant needs no Python. To add one called `finetune_all`:

1. `params.yaml`: copy the section `finetune_fc` to `finetune_all` and change it, for example to
   `trainable: [conv1, conv2, fc1, fc2, output]`.
2. `dvc.yaml`: copy the stage `finetune_fc` to `finetune_all`, and replace every `finetune_fc` in it.
3. `dvc.yaml`, stage `report`: add the line `reports/finetune_all, reports/timing/finetune_all.json,` to `deps`.

To draw its curves with `dvc plots`, copy its lines under `plots:`, too. The report shows it without that.
"""


def code() -> list[str]:
    """List the folders and files of code that stages depend on."""
    return sorted({dep for stage in PIPELINE.values() for dep in stage["deps"] if dep.startswith("stages/")})


def outputs(stage: dict) -> set[str]:
    """List the files and folders that a stage writes."""
    entries = [entry for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, [])]
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def after(names: list[str]) -> list[str]:
    """List the stages that depend on the outputs of these, directly or not."""
    found = list(names)
    for name in found:  # grows in the loop
        written = outputs(PIPELINE[name])
        for other, stage in PIPELINE.items():
            if other not in found and any(f"{out}/".startswith(f"{dep}/") for out in written for dep in stage["deps"]):
                found.append(other)
    return [name for name in PIPELINE if name in found and name not in names]


def columns(readers: list[str]) -> dict[str, str]:
    """Make the last columns of a row for the stages that read something."""
    listed = {"read by": readers, "may run after these": after(readers)}
    return {column: " ".join(f"`{name}`" for name in stages) for column, stages in listed.items()}


def described(annotation: Any) -> str:
    """Describe a type annotation in words."""
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(described(part) for part in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of: {described(get_args(annotation)[0])}"
    if get_args(annotation):
        values = [value for value in get_args(annotation) if isinstance(value, str)]
        return ", ".join(values) or described(get_args(annotation)[0])
    return NAMES[annotation]


def bounds(metadata: list) -> list[str]:
    """Describe the constraints of a field in words."""
    names = {type(constraint).__name__: constraint for constraint in metadata}
    found = [f"{BOUNDS[name]} {getattr(bound, name.lower())}" for name, bound in names.items() if name in BOUNDS]
    return found + [f"at least {bound.min_length} long" for name, bound in names.items() if name == "MinLen"]


def rows(section: BaseModel, prefix: str = "") -> list[dict]:
    """Make a row of the table for every setting of a section that holds the defaults."""
    found = []
    for name, field in type(section).model_fields.items():
        key, default = f"{prefix}{name}", getattr(section, name)
        if isinstance(default, BaseModel):
            found += rows(default, f"{key}.")
        else:
            allowed = "; ".join([described(field.annotation), *bounds(field.metadata)])
            row = {"setting": f"`{key}`", "allowed": allowed, "default": f"`{json.dumps(default)}`"}
            readers = [stage for stage, entry in PIPELINE.items() if stage_reads(entry, key)]
            found.append(row | {"meaning": field.description} | columns(readers))
    return found


def page() -> str:
    """Render the page in Markdown."""
    users = {dep: [name for name, stage in PIPELINE.items() if dep in stage["deps"]] for dep in code()}
    files = [{"code": f"`{dep}`"} | columns(names) for dep, names in users.items()]
    tables = {"settings": rows(Settings()), "files": files}
    return TEXT.format(**{name: pd.DataFrame(table).to_markdown(index=False) for name, table in tables.items()})


def params(section: BaseModel, explained: set[str], indent: str = "") -> list[str]:
    """Write a section that holds the defaults as lines of YAML, with each help text where it first applies."""
    lines = []
    for name, field in type(section).model_fields.items():
        value, choices = getattr(section, name), get_args(field.annotation)
        if isinstance(value, BaseModel):
            lines += [f"{name}:", *params(value, explained, "  ")]
            continue
        values = [f"{', '.join(choices)}; "] if choices and all(isinstance(c, str) for c in choices) else []
        text = f"{indent}{name}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        help_ = "".join([*values, field.description or ""])
        if help_ in explained:
            lines.append(text)
        elif isinstance(value, list):  # DVC breaks the file if a list followed by a comment becomes []
            lines += [f"{indent}# {help_}", text]
        else:
            lines.append(f"{text:38} # {help_}")
        explained.add(help_)
    return lines


if __name__ == "__main__":
    if sys.argv[1:] == ["--params"]:
        print("# Every setting of the pipeline. The defaults are the notebook's recipe.")
        print("# To change one for one run:  dvc exp run -S finetune_fc.epochs=3")
        print("\n".join(params(Settings(), set())))
    else:
        PAGE.write_text(page(), encoding="utf-8")
