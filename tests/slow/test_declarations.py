"""`dvc.yaml` declares exactly what each stage imports, opens and reads of the settings: no more, no less."""

import copy
import functools
import json
import sys
from pathlib import Path

import pytest
import yaml

from counting import counted
from repository import ROOT, Repository, outputs, tiny_params
from stages.settings import leaves

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SETTINGS = dict(leaves(tiny_params()))
FOR_PICTURES = {"data.test_fraction", "data.unreadable"}  # of the section `data`, not read here: these are arrays
KEYS = ("deps", "params", "outs", "plots", "metrics")


@functools.cache
def files_in(path: Path) -> list[Path]:
    """The files in a folder, or the one that is at the path or should be."""
    found = path.rglob("*") if path.is_dir() else [path]
    return [f for f in found if not f.is_dir() and "__pycache__" not in f.parts and f.name != ".gitkeep"]


def declared(stage: dict, folder: Path) -> dict[str, set[str]]:
    """What a stage of `dvc.yaml` declares, by kind: files, those of folders included, and settings."""
    files: dict[str, set[str]] = {}
    names = [str(SETTINGS[dep[2:-1]]) if dep.startswith("${") else dep for dep in stage["deps"]]
    for kind, paths in {"deps": names, "written": outputs(stage)}.items():
        files[kind] = {file.relative_to(folder).as_posix() for path in paths for file in files_in(folder / path)}
    everything = any(isinstance(entry, dict) for entry in stage["params"])  # the whole file
    settings = {
        key for key in SETTINGS if everything or any(f"{key}.".startswith(f"{name}.") for name in stage["params"])
    }
    code = {file for file in files["deps"] if file.startswith("stages/")}
    return {"code": code, "read": files["deps"] - code, "written": files["written"], "params": settings}


def mismatches(stage: dict, seen: dict[str, list[str]], folder: Path) -> list[str]:
    """How a stage's declarations differ from what was seen of it."""
    says = declared(stage, folder)
    differ = {kind: says[kind] ^ set(seen[kind]) for kind in seen}
    differ["params"] -= FOR_PICTURES
    return [f"{kind}: {sorted(names)}" for kind, names in differ.items() if names]


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, dict[str, dict[str, list[str]]]]:
    """Where each stage really ran, and what it imported, opened and read."""
    repo = Repository(tmp_path_factory.mktemp("watched"))
    seen = {}
    for name, stage in STAGES.items():
        out = repo.path.parent / f"{name}.json"
        module, *arguments = stage["cmd"].removeprefix("exec python -m ").split()
        repo.run(sys.executable, str(Path(__file__).with_name("watch.py")), str(out), module, *arguments)
        seen[name] = json.loads(out.read_text())
    return repo.path, seen


@pytest.mark.parametrize("name", STAGES)
def test_declares_what_a_real_run_uses(watched, name):
    folder, seen = watched
    assert mismatches(STAGES[name], seen[name], folder) == []


def test_every_removed_or_added_declaration_is_noticed(watched):
    folder, seen = watched
    checked = 0
    for name, stage in STAGES.items():
        variants = []
        for key in KEYS:
            for i in range(len(stage.get(key, []))):
                variants.append(copy.deepcopy(stage))
                del variants[-1][key][i]
        for other in STAGES.values():
            for key in ("deps", "params"):
                for entry in other[key]:
                    if entry not in stage[key] and "params.yaml" not in entry and "params.yaml" not in stage[key][0]:
                        variants.append(copy.deepcopy(stage))
                        variants[-1][key].append(entry)
        for variant in variants:
            more_or_less = {key: variant[key] for key in KEYS if variant.get(key) != stage.get(key)}
            covered = declared(variant, folder) == declared(stage, folder)  # by a folder that is named, too
            assert covered or mismatches(variant, seen[name], folder), f"{name}: nothing noticed of {more_or_less}"
            checked += not covered
    assert checked > 60
    counted["declarations removed or added, each noticed"] = checked
