"""The stages that rerun after each change of a setting or a code file: DVC's answer is that of docs/settings.md."""

import itertools
import runpy

import yaml
from dvc.repo import Repo

from counting import counted
from repository import ROOT, STAGES, Repository, outputs
from stages.settings import Settings

TOOL = runpy.run_path(str(ROOT / "tools/settings_page.py"))


def change(repo: Repository, entry: str) -> None:
    """Change one code file or one setting."""
    if entry.startswith("stages/"):
        (repo.path / entry).write_text("# changed\n")
        return
    params = yaml.safe_load((repo.path / "params.yaml").read_text())
    section, _, name = entry.rpartition(".")
    (params[section] if section else params)[name] = "changed"
    (repo.path / "params.yaml").write_text(yaml.safe_dump(params))


def stages_by_change(repo: Repository) -> dict[str, list[str]]:
    """List the stages that DVC would rerun for each changed dependency and each changed section of settings."""
    found: dict[str, list[str]] = {}
    for stage, problems in Repo(str(repo.path)).status().items():
        deps = problems[0]["changed deps"]
        for name in (*deps, *deps.get("params.yaml", ())):
            found.setdefault(name, []).append(stage.rpartition(":")[2])
    return found


def documented(entry: str) -> list[str]:
    """Return the column «read by» of the page's row for a setting or for code."""
    (row,) = [line for line in TOOL["PAGE"].read_text().splitlines() if line.startswith(f"| `{entry}` ")]
    return row.split("|")[-3].replace("`", "").split()


def test_the_page_is_made_from_the_code():
    assert TOOL["PAGE"].read_text() == TOOL["page"](), "run `make docs`"


def test_each_setting_and_each_code_file_reruns_the_documented_stages(tmp_path):
    repo = Repository(tmp_path)
    for name in (name for stage in STAGES.values() for name in outputs(stage)):
        path = repo.path / name if "." in name else repo.path / name / "empty"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    repo.dvc("commit", "--force")  # records these outputs as up to date
    (repo.path / "changed").write_text("")  # for settings that name files

    files = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("stages/**/*.*") if path.suffix != ".pyc"]
    groups = {name: [file for file in files if f"{file}/".startswith(f"{name}/")] for name in TOOL["code"]()}
    assert sorted(itertools.chain(*groups.values())) == sorted(files)
    for key in Settings().by_key():
        groups.setdefault(key.partition(".")[0], []).append(key)
    for entries in itertools.zip_longest(*groups.values()):  # one change of each group: DVC tells groups apart
        changes = {name: entry for name, entry in zip(groups, entries, strict=True) if entry}
        for entry in changes.values():
            change(repo, entry)
        found = stages_by_change(repo)
        for name, entry in changes.items():
            assert found.get(name) == documented(name if "/" in name else entry), entry
        counted["settings and code files changed, each rerunning what settings.md says"] += len(changes)
        repo.run("git", "checkout", "-q", "params.yaml", "stages")
