"""`dvc.yaml` declares exactly what each stage imports, opens and reads of the settings: no more, no less."""

import ast
import copy
import json
import sys
from pathlib import Path

import pytest
import yaml

from counting import counted
from repository import ROOT, Repository, tiny_params

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = list(PIPELINE["stages"])
KINDS = ("code", "read", "params", "written")


def imported_files(file: str) -> set[str]:
    """The project's files that `file` imports, directly or through others, itself and the package included."""
    found, left = {"stages/__init__.py"}, [file]
    while left:
        found.add(current := left.pop())
        for node in ast.walk(ast.parse((ROOT / current).read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            files = {f"{module.replace('.', '/')}.py" for module in modules if module.startswith("stages")}
            left += [name for name in files - found if (ROOT / name).is_file()]
    return found


def declared(stage: dict, data_path: str) -> dict[str, set[str]]:
    """What a stage of `dvc.yaml` declares, by kind."""
    deps = {dep.replace("${data.path}", data_path) for dep in stage["deps"]}
    outs = [*stage.get("outs", []), *stage.get("plots", []), *stage.get("metrics", [])]
    return {
        "code": {dep for dep in deps if dep.endswith(".py")},
        "read": {dep for dep in deps if not dep.endswith(".py")},
        "params": set(stage["params"]),
        "written": {name for out in outs for name in ([out] if isinstance(out, str) else out)},
    }


def mismatches(stage: dict, seen: dict[str, list[str]]) -> list[str]:
    """How a stage's declarations differ from what was seen of it."""
    says = declared(stage, tiny_params()["data"]["path"])
    return [f"{kind}: {sorted(says[kind] ^ set(seen[kind]))}" for kind in KINDS if says[kind] != set(seen[kind])]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    """What a real run of each stage imports, opens and reads."""
    repo = Repository(tmp_path_factory.mktemp("watched"))
    seen = {}
    for name, stage in PIPELINE["stages"].items():
        out = repo.path.parent / f"{name}.json"
        module, *arguments = stage["cmd"].removeprefix("exec python -m ").split()
        repo.run(sys.executable, str(Path(__file__).with_name("watch.py")), str(out), module, *arguments)
        seen[name] = json.loads(out.read_text())
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_declares_what_a_real_run_uses(seen, name):
    assert mismatches(PIPELINE["stages"][name], seen[name]) == []


@pytest.mark.parametrize("name", STAGES)
def test_declares_what_the_code_imports(name):
    module = PIPELINE["stages"][name]["cmd"].split()[3]
    code = declared(PIPELINE["stages"][name], "")["code"]
    assert code == imported_files(f"{module.replace('.', '/')}.py")


def test_every_removed_or_added_declaration_is_noticed(seen):
    checked = 0
    for name, stage in PIPELINE["stages"].items():
        for key in ("deps", "params", "outs", "plots", "metrics"):
            for i in range(len(stage.get(key, []))):
                less = copy.deepcopy(stage)
                del less[key][i]
                assert mismatches(less, seen[name]), f"{name}: nothing noticed without {stage[key][i]}"
                checked += 1
        others = {entry for other in PIPELINE["stages"].values() for entry in [*other["deps"], *other["params"]]}
        for entry in sorted(others - {*stage["deps"], *stage["params"]}):
            more = copy.deepcopy(stage)
            more["deps" if "/" in entry or "$" in entry else "params"].append(entry)
            assert mismatches(more, seen[name]), f"{name}: nothing noticed with {entry} added"
            checked += 1
    assert checked > 200
    counted["declarations removed or added, each noticed"] = checked


def test_light_stages_run_no_tensorflow(seen):
    light = {name for name in STAGES if "stages/training.py" not in seen[name]["code"]}
    assert light == {"prepare", "report"}
