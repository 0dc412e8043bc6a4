"""Read and write a study's state in Git and DVC: the base commit and the completed experiments.

The Git refs in ``refs/exps`` are the only record of experiments.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

import yaml

from stages.settings import PARAMS, Settings, leaves
from stages.shared.errors import UserError, one_line
from stages.shared.yaml_files import parse_yaml, read_yaml
from studies.plan import FlatSettings
from studies.worker import Base

DVC = (sys.executable, "-m", "dvc")


@dataclass(frozen=True)
class Experiment:
    """A completed experiment: its commit, and metrics and details by stage."""

    rev: str
    metrics: dict


def _call(*command: str, hint: str = "") -> str:
    """Run a command and return its output; raise `UserError`, ending with `hint`, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        text = f"{' '.join(command).removeprefix(f'{sys.executable} -m ')}: {one_line(done.stderr)}"
        raise UserError(f"{text}; {hint}" if hint else text)
    return done.stdout.rstrip("\n")


def _git(*arguments: str, hint: str = "") -> str:
    return _call("git", *arguments, hint=hint)


def _settings_of(rev: str) -> FlatSettings:
    text = _git("show", f"{rev}:./{PARAMS}", hint=f"expected a Git repository in which {PARAMS} is committed")
    try:
        return dict(leaves(parse_yaml(text)))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{PARAMS}: no valid YAML in commit {rev}: {one_line(error)}") from None


def committed_settings() -> FlatSettings:
    """Return the settings in the last commit; raise `UserError` if one is missing."""
    settings = _settings_of("HEAD")
    if missing := ", ".join(key for key in Settings().by_key() if key not in settings):
        raise UserError(f"{PARAMS}: {missing}: missing in the last commit, expected a value")
    return settings


def pipeline_commit() -> str:
    """Return the abbreviated last commit that changed the pipeline, which committing a page does not change."""
    return _git("log", "-1", "--format=%h", "--", "dvc.yaml", str(PARAMS), "stages")


def prepare_base(remote_workers: bool) -> Base:
    """Return the checked-out commit as the base of experiments; for remote workers, push the data they need.

    Raises `UserError` if code or the keys of ``params.yaml`` (a plan sets the values) are not committed, if Git does
    not know the user's name, or if remote workers could not get the commit or the data.
    """
    changed = _git("diff", "--name-only", "HEAD", "--", "dvc.yaml", "stages").split()
    if set(dict(leaves(read_yaml(PARAMS, "the settings")))) != set(committed_settings()):
        changed.append(str(PARAMS))
    if changed:
        raise UserError(f"{', '.join(changed)}: changed since the last commit; a study runs what is committed")
    commit = _git("rev-parse", "HEAD")
    committer, email = _git("var", "GIT_COMMITTER_IDENT").rsplit(">", 1)[0].rsplit(" <", 1)
    if not remote_workers:
        return Base(_git("rev-parse", "--show-toplevel"), commit, committer, email, _call(*DVC, "cache", "dir"))
    _git("fetch", "--quiet", "origin", hint="workers exchange experiments through Git's remote origin")
    if not _git("branch", "--remotes", "--contains", commit):
        raise UserError(f"commit {commit[:7]} is not on Git's remote origin, which workers clone; type `git push`")
    print("pushing data for the workers", flush=True)
    _call(*DVC, "push", "--quiet", "--run-cache", hint="workers exchange data through DVC's default remote")
    return Base(_git("remote", "get-url", "origin"), commit, committer, email, None)


def completed_experiments(base: Base, wanted: dict[str, FlatSettings]) -> dict[str, Experiment]:
    """Return the wanted experiments that are completed, by name; delete those that have other settings."""
    if not base.cache:
        _git("fetch", "--quiet", "origin", f"+{base.ref('*')}:{base.ref('*')}")
    listed = _git("for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", base.ref())
    completed = {}
    for name, rev in map(str.split, listed.splitlines()):
        if name not in wanted:
            continue
        if _settings_of(rev) == wanted[name]:
            found = [json.loads(_git("show", f"{rev}:./reports/{file}.json")) for file in ("details", "metrics")]
            completed[name] = Experiment(rev, {stage: found[0][stage] | found[1][stage] for stage in found[1]})
        else:
            print(f"repeating {name}: its settings differ from the plan's", flush=True)
            _git("update-ref", "-d", base.ref(name))
            if not base.cache:
                _git("push", "--quiet", "origin", f":{base.ref(name)}")
    return completed
