"""Run one experiment on a Dask worker, in a temporary clone; push its data first and its ref last.

The ref is the experiment's only record. It is pushed only if there is none yet, so a worker that was given up and
finishes late changes nothing.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import dask.config
import pooch
from distributed import get_worker

from stages.shared.errors import one_line
from stages.shared.machine import cpu

TOPIC = "transfer-learning-study"  # Dask events [experiment, line of output]
CACHE = Path(pooch.os_cache("transfer-learning-pipeline")) / "studies"  # the DVC cache of a remote worker
KILLED = re.compile(r"exited with (-\d+|13[47]|139|143)\b")  # by a signal, such as for lack of memory
# PR_SET_PDEATHSIG: DVC is killed when its worker dies.
DVC = (
    sys.executable, "-c", "import ctypes, runpy, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "sys.argv[0] = 'dvc'; runpy.run_module('dvc', run_name='__main__')",
)  # fmt: skip
WRITE = """import dvc.repo, uuid  # fails if DVC's remote cannot be written
remote = dvc.repo.Repo().cloud.get_remote()
path = remote.fs.join(remote.path, f"check-{uuid.uuid4()}")
remote.fs.makedirs(remote.path, exist_ok=True)
remote.fs.pipe_file(path, b"check")
remote.fs.rm_file(path)"""


@dataclass(frozen=True)
class Base:
    """The commit that a study's experiments start from, and the repository to clone and to push refs to."""

    git: str
    folder: str  # of dvc.yaml in the repository; "" at its top
    commit: str
    committer: str
    email: str
    cache: str | None  # the user's DVC cache; None if workers are remote

    def ref(self, name: str = "") -> str:
        """Return the Git ref in which DVC records an experiment, or the prefix of all of them."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"


Status = Literal["done", "failed", "interrupted", "unusable"]


class Outcome(NamedTuple):
    """The outcome of an attempt to run an experiment.

    failed: another attempt would fail, too. interrupted: it may succeed. unusable: this worker cannot run experiments.
    """

    status: Status
    reason: str = ""


class CommandError(Exception):
    """A failed command and the reason."""


def identify_machine() -> tuple[str, str]:
    """Return the CPU's name (results differ between CPU types) and an identifier of the machine."""
    return cpu()[0], f"{socket.gethostname()} {CACHE}"


def run_experiment(base: Base, name: str, overrides: list[str], push_pretraining: bool) -> Outcome:
    """Run an experiment with overrides for ``dvc exp run``, and push it.

    With `push_pretraining`, the pretrained model is pushed as soon as it exists: other experiments need it.
    """
    ref, remote = base.ref(name), not base.cache
    with TemporaryDirectory(dir=get_worker().local_directory) as folder:
        clone = _Clone(base, name, Path(folder))
        status: Status = "unusable"
        try:
            if clone.call("git", "ls-remote", "--exit-code", base.git, ref, check=False):
                return Outcome("done")
            clone.create()
            status = "failed"
            if push_pretraining and remote:
                clone.call(*DVC, "exp", "run", "--pull", *overrides, "pretrain")
                clone.call(*DVC, "push", "--run-cache", "pretrain")
            clone.call(*DVC, "exp", "run", "--name", name, *(["--pull"] if remote else []), *overrides)
            status = "interrupted"
            if remote:
                clone.call(*DVC, "push", "--run-cache")
            if not clone.call("git", "ls-remote", "--exit-code", "origin", ref, check=False):  # no other was first
                clone.call("git", "push", "--quiet", f"--force-with-lease={ref}:", "origin", f"{ref}:{ref}")
        except CommandError as error:
            if KILLED.search(str(error)):
                status = "interrupted"
            return Outcome(status, str(error) if status == "failed" else f"{socket.gethostname()}: {error}")
    return Outcome("done")


class _Clone:
    """A temporary clone of the repository for one experiment."""

    def __init__(self, base: Base, name: str, folder: Path):
        self.base, self.name, self.top, self.path = base, name, folder / "clone", folder / "clone" / base.folder
        set_by_dask = dask.config.get("distributed.nanny.pre-spawn-environ")  # thread counts, which change results
        inherited = {key: value for key, value in os.environ.items() if str(set_by_dask.get(key)) != value}
        self.environment = inherited | {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "GIT_AUTHOR_NAME": base.committer, "GIT_AUTHOR_EMAIL": base.email,
            "GIT_COMMITTER_NAME": base.committer, "GIT_COMMITTER_EMAIL": base.email,
            "GIT_TERMINAL_PROMPT": "0",
        }  # fmt: skip

    def create(self) -> None:
        """Clone the commit, and check that a remote worker can write to both remotes."""
        self.call("git", "clone", "--quiet", "--no-checkout", self.base.git, str(self.top))
        self.call("git", "-C", str(self.top), "checkout", "--quiet", "--detach", self.base.commit)
        if (self.top / ".git/shallow").exists():
            raise CommandError(f"{self.base.git} is shallow, DVC loses its experiments; type `git fetch --unshallow`")
        config = f'[cache]\n    dir = "{self.base.cache or CACHE}"\n    type = "reflink,hardlink,copy"\n'
        (self.path / ".dvc/config.local").write_text(config)
        if not self.base.cache:
            self.call("git", "push", "--quiet", "--dry-run", "origin", f"{self.base.commit}:refs/exps/check")
            self.call(sys.executable, "-c", WRITE)

    def call(self, *command: str, check: bool = True) -> bool:
        """Run a command, send its output to the scheduler, return whether it succeeds; `check`: else `CommandError`."""
        process = subprocess.Popen(
            command, cwd=self.path if self.path.exists() else self.top.parent, env=self.environment,
            text=True, errors="replace", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout
        lines = []
        for line in filter(None, map(str.strip, process.stdout)):
            if "\x1b" not in line:  # a progress bar
                lines.append(line)
                get_worker().log_event(TOPIC, [self.name, line])
        if process.wait() and check:
            raise CommandError(find_reason(command, lines))
        return process.returncode == 0


def find_reason(command: Sequence[str], lines: list[str]) -> str:
    """Find the line that explains a failure: a signal, a stage's error, the end of a traceback, DVC's error."""
    if command[0] == "git":  # prints nothing else, and a server's reason may be in any line
        return one_line(f"git: {' '.join(lines) or 'no message'}")
    for pattern in (KILLED.pattern, "^error: ", r"^[\w.]+(Error|Exception|Exit): ", "^ERROR: "):
        if found := [line for line in lines if re.search(pattern, line)]:
            return found[0]
    return lines[-1] if lines else "no message"
