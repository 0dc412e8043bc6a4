"""For each setting and each file of code: the stages that run again, by DVC's own word, as docs/settings.md has it."""

import runpy

import pytest
import yaml
from dvc.repo import Repo

from counting import counted
from repository import ROOT, Repository, outputs
from stages.settings import Settings

DOCS = runpy.run_path(str(ROOT / "docs/make_settings.py"))
FILES = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("stages/**/*.*")) if path.suffix != ".pyc"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository whose outputs, empty files, are all recorded as up to date."""
    repo = Repository(tmp_path_factory.mktemp("recompute"))
    for name in (name for stage in DOCS["PIPELINE"].values() for name in outputs(stage)):
        path = repo.path / name if "." in name else repo.path / name / "empty"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    repo.dvc("commit", "--force")
    return repo


def stages_that_would_run(repo) -> list[str]:
    return [name.rsplit(":", 1)[-1] for name in Repo(str(repo.path)).status()]


def documented(entry: str) -> list[str]:
    """The column «read by» of the page's row for a setting or for code."""
    page = (ROOT / "docs/settings.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{entry}` ")]
    return row.split("|")[-3].replace("`", "").split()


def test_the_page_is_made_from_the_code():
    assert (ROOT / "docs/settings.md").read_text() == DOCS["page"](), "run `make docs`"


@pytest.mark.parametrize("key", Settings().by_key())
def test_setting(repo, key):
    path = repo.path / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    *sections, name = key.split(".")
    section = params
    for step in sections:
        section = section[step]
    section[name] = "changed"
    if key == "data.path":
        (repo.path / "changed").write_text("")
    path.write_text(yaml.safe_dump(params))
    assert stages_that_would_run(repo) == documented(key)
    counted["entries of the table of what reruns, each tried"] = 1
    path.write_text(before)


@pytest.mark.parametrize("file", FILES)
def test_file(repo, file):
    path = repo.path / file
    before = path.read_bytes()
    path.write_bytes(before + b"# changed\n")
    code = file if file in DOCS["code"]() else file.rpartition("/")[0].removesuffix("/templates")
    assert stages_that_would_run(repo) == documented(code)
    counted["entries of the table of what reruns, each tried"] = 1
    path.write_bytes(before)
