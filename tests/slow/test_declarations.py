"""`dvc.yaml` declares exactly the code that each stage imports, the files it opens and the settings it reads."""

import functools
import json
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from repository import STAGES, Repository, tiny_params
from stages.settings import leaves
from tools import settings_page

SETTINGS = dict(leaves(tiny_params()))
# By arrays, without a backbone, and but for the notebook's own images.
UNUSED = {"data.test_fraction", "data.unreadable", "model.pooling", "stages/reporting/notebook_runs.csv"}


@functools.cache
def files_in(path: Path) -> list[Path]:
    """List the files in a folder, or the path itself."""
    found = path.rglob("*") if path.is_dir() else [path]
    return [f for f in found if not f.is_dir() and "__pycache__" not in f.parts and f.name != ".gitkeep"]


def declared(stage: dict, folder: Path) -> dict[str, set[str]]:
    """Return the files, those of folders included, and the settings that a stage of `dvc.yaml` declares."""
    paths = {"deps": [str(SETTINGS[dep[2:-1]]) if dep[0] == "$" else dep for dep in stage["deps"]]}
    paths["written"] = settings_page.outputs(stage)
    files = {k: {f.relative_to(folder).as_posix() for p in ps for f in files_in(folder / p)} for k, ps in paths.items()}
    files["deps"] -= UNUSED
    code = {file for file in files["deps"] if file.startswith("stages/")}
    sections = list(SETTINGS) if {"params.yaml": None} in stage["params"] else stage["params"]
    settings = {key for key in SETTINGS for name in sections if f"{key}.".startswith(f"{name}.")} - UNUSED
    return {"code": code, "read": files["deps"] - code, "written": files["written"], "params": settings}


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, dict[str, dict[str, set[str]]]]:
    """Run each stage; return the folder, and the code, files and settings that each used."""
    repo = Repository(tmp_path_factory.mktemp("watched"), tiny_params())
    used = {}
    for name, stage in STAGES.items():
        out = repo.path.parent / f"{name}.json"
        module = stage["cmd"].removeprefix("exec python -m ").split()
        repo.run(sys.executable, str(Path(__file__).with_name("watch.py")), str(out), *module)
        used[name] = {kind: set(names) - UNUSED for kind, names in json.loads(out.read_text()).items()}
    return repo.path, used


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_exactly_what_a_real_run_uses(watched, name):
    folder, used = watched
    assert declared(STAGES[name], folder) == used[name]


def test_the_page_is_made_from_the_code():
    assert settings_page.PAGE.read_text() == settings_page.page(), "run `make docs`"


def test_a_change_of_each_section_of_settings_and_folder_of_code_reruns_the_documented_stages(tmp_path):
    repo = Repository(tmp_path)
    for name in (name for stage in STAGES.values() for name in settings_page.outputs(stage)):
        path = repo.path / name if "." in name else repo.path / name / "empty"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    repo.dvc("commit", "--force")  # records these outputs as up to date
    changed = {name: name for name in settings_page.code()}
    for path in (repo.path / name for name in changed):
        (path if path.is_file() else path / "__init__.py").write_text("# changed\n")
    params = yaml.safe_load((repo.path / "params.yaml").read_text())
    for name, section in list(params.items()):
        *_, last = section if isinstance(section, dict) else [""]
        (section if last else params)[last or name] = "changed"
        changed[name] = f"{name}.{last}".rstrip(".")
    (repo.path / "params.yaml").write_text(yaml.safe_dump(params))
    found: dict[str, list[str]] = {}
    for stage, problems in Repo(str(repo.path)).status().items():
        deps = problems[0]["changed deps"]
        for name in (*deps, *deps.get("params.yaml", ())):
            found.setdefault(name, []).append(stage.rpartition(":")[2])
    for name, entry in changed.items():
        (row,) = [line for line in settings_page.PAGE.read_text().splitlines() if line.startswith(f"| `{entry}` ")]
        assert found[name] == row.split("|")[-3].replace("`", "").split(), entry  # the column «read by»
