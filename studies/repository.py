"""What a study has to do with Git and DVC: what its experiments start from, and which of them have been run.

``refs/exps`` is the record, and there is no other.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

import yaml

from stages.settings import PARAMS, leaves, read_yaml
from stages.shared.errors import UserError, one_line
from studies.plan import Changes, committed_settings
from studies.worker import Base


@dataclass(frozen=True)
class Experiment:
    """An experiment that has been run: its commit, and its ``metrics.json``."""

    rev: str
    metrics: dict


def git(*arguments: str) -> str:
    """What a ``git`` command prints; raises `UserError` if it fails."""
    return _call("git", *arguments)


def dvc(*arguments: str) -> str:
    """What a ``dvc`` command prints; raises `UserError` if it fails."""
    return _call(sys.executable, "-m", "dvc", *arguments)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command).removeprefix(f'{sys.executable} -m ')}: {one_line(done.stderr)}")
    return done.stdout.strip()


def base(several_machines: bool) -> Base:
    """What the experiments start from: the checked-out commit.

    Raises `UserError` if the code is not as committed, ``params.yaml`` has other keys (the plan sets all values), Git
    does not know the user's name, or, with several machines, Git's or DVC's remote lacks it or cannot be reached.
    """
    changed = git("diff", "--name-only", "HEAD", "--", "dvc.yaml", "stages").split()
    if set(dict(leaves(read_yaml(PARAMS, "the settings")))) != set(committed_settings()):
        changed.append(str(PARAMS))
    if changed:
        raise UserError(f"{', '.join(changed)}: changed since the last commit; commit it first: a study runs that")
    commit = git("rev-parse", "HEAD")
    committer, email = git("var", "GIT_COMMITTER_IDENT").rsplit(">", 1)[0].rsplit(" <", 1)
    if not several_machines:
        return Base(git("rev-parse", "--show-toplevel"), commit, committer, email, dvc("cache", "dir"))
    try:
        git("fetch", "--quiet", "origin")
    except UserError as error:
        raise UserError(f"several machines share their work through Git's remote origin: {error}") from None
    if not git("branch", "--remotes", "--contains", commit):
        raise UserError(f"commit {commit[:7]} is not on Git's remote origin, where workers get it; type `git push`")
    print("pushing data that workers need", flush=True)
    try:
        dvc("push", "--quiet", "--run-cache")
    except UserError as error:
        raise UserError(f"several machines share their data through DVC's default remote: {error}") from None
    return Base(git("remote", "get-url", "origin"), commit, committer, email, None)


def experiments(base: Base, wanted: dict[str, Changes]) -> dict[str, Experiment]:
    """The experiments that have been run with just the settings that are wanted, by name; forgets those with others."""
    if not base.cache:
        git("fetch", "--quiet", "origin", f"+{base.ref('*')}:{base.ref('*')}")
    listed = git("for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", base.ref())
    known = {}
    for name, rev in map(str.split, listed.splitlines()):
        if name not in wanted:
            continue
        settings = dict(leaves(yaml.load(git("show", f"{rev}:./{PARAMS}"), yaml.CSafeLoader)))
        if settings == wanted[name]:
            known[name] = Experiment(rev, json.loads(git("show", f"{rev}:./reports/metrics.json")))
        else:
            print(f"again: {name}: its settings differ from the plan's", flush=True)
            git("update-ref", "-d", base.ref(name))
            if not base.cache:
                git("push", "--quiet", "origin", f":{base.ref(name)}")
    return known
