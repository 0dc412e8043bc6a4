"""Read and write a study's state in Git and DVC: the base commit and the completed experiments.

The Git refs in ``refs/exps`` are the only record of experiments.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from dvc.api import DVCFileSystem
from pydantic import Field, ValidationError, create_model

from stages.settings import PARAMS, Settings, leaves
from stages.shared.errors import UserError, describe_all, describe_problem, one_line
from stages.shared.files import PREPARED
from stages.shared.yaml_files import parse_yaml, read_yaml
from studies.plan import FlatSettings
from studies.worker import Base, find_reason

DVC = (sys.executable, "-m", "dvc")
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Seconds = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
FIELDS = {  # of a stage, in files of reports/, that studies use
    "metrics": create_model("Metrics", test_accuracy=(Share, ...), control_test_accuracy=(Share | None, None)),
    "details": create_model("Details", validation_accuracy=(Share | None, ...), train_seconds=(Seconds, ...)),
}


@dataclass(frozen=True)
class Experiment:
    """A completed experiment: its commit, and its `FIELDS` by stage."""

    rev: str
    metrics: dict[str, dict]


def _call(*command: str, hint: str = "") -> str:
    """Run a command and return its output; raise `UserError`, ending with `hint`, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(command).removeprefix(f"{sys.executable} -m ")
        raise UserError("; ".join(filter(None, [f"{words}: {find_reason(command, done.stderr.splitlines())}", hint])))
    return done.stdout.rstrip("\n")


def _git(*arguments: str, hint: str = "") -> str:
    return _call("git", *arguments, hint=hint)


def _settings_of(rev: str) -> FlatSettings:
    text = _git("show", f"{rev}:./{PARAMS}", hint=f"expected a Git repository in which {PARAMS} is committed")
    try:
        return dict(leaves(parse_yaml(text)))
    except (ValueError, AttributeError, RecursionError) as error:  # AttributeError: no keys
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


def prepare_base(wanted: dict[str, FlatSettings], remote_workers: bool) -> Base:
    """Return the checked-out commit as the base of experiments; for remote workers, push the data they need.

    Raises `UserError` if code, data or the keys of ``params.yaml`` (a plan sets the values) are not committed, if Git
    does not know the user's name, if its clone is shallow, or if remote workers could not get the commit or the data.
    """
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise UserError("this clone is shallow, and DVC would lose its experiments; type `git fetch --unshallow`")
    changed = _git("diff", "--name-only", "--relative", "HEAD", "--", "dvc.yaml", "stages").split()
    if set(dict(leaves(read_yaml(PARAMS, "the settings")))) != set(committed_settings()):
        changed.append(str(PARAMS))
    if changed:
        raise UserError(f"{', '.join(changed)}: changed since the last commit; a study runs what is committed")
    _check_data(wanted, remote_workers)
    commit, folder = _git("rev-parse", "HEAD"), _git("rev-parse", "--show-prefix")
    committer, email = _git("var", "GIT_COMMITTER_IDENT").rsplit(">", 1)[0].rsplit(" <", 1)
    if not remote_workers:
        return Base(_git("rev-parse", "--show-toplevel"), folder, commit, committer, email, _call(*DVC, "cache", "dir"))
    _git("fetch", "--quiet", "origin", hint="workers exchange experiments through Git's remote origin")
    if not _git("branch", "--remotes", "--contains", commit):
        raise UserError(f"commit {commit[:7]} is not on Git's remote origin, which workers clone; type `git push`")
    print("pushing data for the workers", flush=True)
    _call(*DVC, "push", "--run-cache", hint="workers exchange data through DVC's default remote")
    return Base(_git("remote", "get-url", "origin"), folder, commit, committer, email, None)


def files_at(rev: str) -> tuple[DVCFileSystem, str]:
    """Return the files that Git and DVC have in a commit, and the path of this folder there, such as ""."""
    return DVCFileSystem(rev=rev, subrepos=True), _git("rev-parse", "--show-prefix")


def count_training_images(done: dict[str, Experiment]) -> tuple[int, int]:
    """Count an experiment's target images to train on: the mean of the classes, and the smallest class's."""
    files, folder = files_at(next(iter(done.values())).rev)
    with files.open(f"{folder}{PREPARED.as_posix()}/target.npz") as file, np.load(file) as arrays:
        counts = np.bincount(arrays["y_train"])
    return round(counts.mean()), int(counts.min())


def _check_data(wanted: dict[str, FlatSettings], remote_workers: bool) -> None:
    """Raise `UserError` if an experiment's file or folder is not committed to Git or DVC."""
    keys = set(re.findall(r"\$\{(.+?)\}", Path("dvc.yaml").read_text()))  # of dependencies
    paths = {(key, settings[key]): name for name, settings in wanted.items() for key in sorted(keys & set(settings))}
    files, folder = files_at("HEAD")
    for (key, path), name in paths.items():
        elsewhere = not remote_workers and Path(path).is_absolute() and Path(path).exists()
        if not elsewhere and not files.exists(folder + path):
            expected = f"a path that the last commit has (`dvc add {path}`, then `git commit`)"
            raise UserError(f"{name}: {describe_problem(key, path, expected)}")


def completed_experiments(base: Base, wanted: dict[str, FlatSettings]) -> dict[str, Experiment]:
    """Return the wanted experiments that are completed, by name; raise `UserError` if the record of one is damaged."""
    if not base.cache:
        _git("fetch", "--quiet", "origin", f"+{base.ref('*')}:{base.ref('*')}")
    listed = _git("for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", base.ref())
    revs = dict(line.split() for line in listed.splitlines())
    completed = {}
    for name in filter(revs.get, wanted):
        try:
            completed[name] = _read_experiment(revs[name], wanted[name])
        except UserError as error:
            there = "" if base.cache else f" and `dvc exp remove --git-remote origin {name}`"
            raise UserError(f"{name}: {error}; remove it: `dvc exp remove {name}`{there}") from None
    return completed


def _read_experiment(rev: str, wanted: FlatSettings) -> Experiment:
    if _settings_of(rev) != wanted:
        raise UserError(f"{PARAMS} has other settings than its name says")
    declared = parse_yaml(Path("dvc.yaml").read_text(), aliases=True)["stages"]
    stages = [stage for stage in declared if f"{stage}.epochs" in wanted]
    trained: dict[str, dict] = {}
    for file, fields in FIELDS.items():
        keys: dict[str, Any] = dict.fromkeys(stages, (fields, ...))
        path = f"reports/{file}.json"
        try:
            found = dict(create_model(file, **keys).model_validate_json(_git("show", f"{rev}:./{path}")))
        except ValueError as error:  # also not UTF-8
            problem = describe_all(error, "dvc.yaml") if isinstance(error, ValidationError) else one_line(error)
            raise UserError(f"{path}: {problem}") from None
        trained = {stage: trained.get(stage, {}) | dict(found[stage]) for stage in stages}
    return Experiment(rev, trained)
