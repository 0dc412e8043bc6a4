"""What a Dask worker does: run one experiment in a clone that is thrown away; push its data first, its ref last.

The ref is the experiment's only record. It is pushed when all else is safe, and only if there is none yet: a worker
that was given up and finishes late changes nothing.
"""

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import cpuinfo
import dask.config
import pooch
from distributed import get_worker

TOPIC = "transfer-learning-study"  # of the lines that experiments print: events [name, line]
CACHE = Path(pooch.os_cache("transfer-learning-pipeline")) / "studies"  # DVC's, of a machine that is not the user's
KILLED = re.compile(r"exited with (-\d+|13[47]|139|143)\b")  # by the system, such as for want of memory
# PR_SET_PDEATHSIG: an experiment ends with its worker.
DVC = (
    sys.executable, "-c", "import ctypes, runpy, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "sys.argv[0] = 'dvc'; runpy.run_module('dvc', run_name='__main__')",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """What all experiments of a study start from. `cache`: DVC's, if no machine but the user's takes part."""

    git: str  # the repository to clone, and to push the refs to
    commit: str
    committer: str
    email: str
    cache: str | None

    def ref(self, name: str = "") -> str:
        """Where DVC keeps the commit's experiments, and the one of that name."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"


@dataclass(frozen=True)
class Ended:
    """How an experiment ended.

    failed: it will fail again. interrupted: it may not. unfit: it never began, as nothing can run on this machine.
    """

    how: Literal["done", "failed", "interrupted", "unfit"]
    why: str


class Failed(Exception):
    """A command failed; says why."""


def machine() -> tuple[str, str]:
    """The CPU's name, as bits differ between types, and which machine this is."""
    return cpuinfo.get_cpu_info().get("brand_raw", "unknown"), f"{socket.gethostname()} {CACHE}"


def run(base: Base, name: str, overrides: list[str], leads: bool) -> Ended:
    """Run an experiment of that name with settings given as for ``dvc exp run``, and push it.

    `leads`: no experiment had its pretraining before, so others may need that whatever becomes of this one.
    """
    with TemporaryDirectory(dir=get_worker().local_directory) as folder:
        clone = _Clone(base, name, Path(folder))
        how: Literal["failed", "interrupted", "unfit"] = "unfit"
        try:
            if clone.is_done():
                return Ended("done", "")
            clone.make()
            how = "failed"
            if leads and not base.cache:
                clone.dvc("exp", "run", "--pull", *overrides, "pretrain")
                clone.dvc("push", "--run-cache", "pretrain")
            clone.dvc("exp", "run", "--name", name, *([] if base.cache else ["--pull"]), *overrides)
            how = "interrupted"
            clone.share()
        except Failed as error:
            if KILLED.search(str(error)):
                how = "interrupted"
            return Ended(how, str(error) if how == "failed" else f"{socket.gethostname()}: {error}")
    return Ended("done", "")


class _Clone:
    """A clone of the user's repository for one experiment."""

    def __init__(self, base: Base, name: str, folder: Path):
        self.base, self.name, self.path = base, name, folder / "clone"
        by_dask = dask.config.get("distributed.nanny.pre-spawn-environ")  # threads of other libraries: bits may differ
        inherited = {key: value for key, value in os.environ.items() if str(by_dask.get(key)) != value}
        self.environment = inherited | {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),  # thrown away, too
            "GIT_AUTHOR_NAME": base.committer, "GIT_AUTHOR_EMAIL": base.email,
            "GIT_COMMITTER_NAME": base.committer, "GIT_COMMITTER_EMAIL": base.email,
            "GIT_TERMINAL_PROMPT": "0",
        }  # fmt: skip

    def make(self) -> None:
        """Clone the commit, and see that its remotes can be reached before hours are spent."""
        self._call("git", "clone", "--quiet", "--no-checkout", self.base.git, str(self.path))
        self._call("git", "checkout", "--quiet", "--detach", self.base.commit)
        config = f'[cache]\n    dir = "{self.base.cache or CACHE}"\n    type = "reflink,hardlink,copy"\n'
        (self.path / ".dvc/config.local").write_text(config)
        if not self.base.cache:
            self.dvc("status", "--cloud")

    def is_done(self) -> bool:
        """Whether the experiment has been run meanwhile."""
        with suppress(Failed):
            self._call("git", "ls-remote", "--exit-code", self.base.git, self.base.ref(self.name))
            return True
        return False

    def share(self) -> None:
        """Push what was computed, then the ref unless there is one, and see that it arrived."""
        if not self.base.cache:
            self.dvc("push", "--run-cache")
        ref = self.base.ref(self.name)
        with suppress(Failed):  # there may be one already
            self._call("git", "push", "--quiet", f"--force-with-lease={ref}:", "origin", f"{ref}:{ref}")
        self._call("git", "ls-remote", "--exit-code", "origin", ref)

    def dvc(self, *arguments: str) -> None:
        """Run a ``dvc`` command."""
        self._call(*DVC, *arguments)

    def _call(self, *command: str) -> None:
        """Run a command, passing on what it prints; raises `Failed` if it fails."""
        folder = self.path if self.path.exists() else self.path.parent
        process = subprocess.Popen(
            command, cwd=folder, env=self.environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout
        lines = []
        for line in filter(None, map(str.strip, process.stdout)):
            if "\x1b" not in line:  # a progress bar
                lines.append(line)
                get_worker().log_event(TOPIC, [self.name, line])
        if process.wait():
            raise Failed(_why(lines) or f"{command[0]}: exit code {process.returncode}")


def _why(lines: list[str]) -> str:
    """The line that says why a command failed: that it was killed, a stage's own error, the end of a traceback."""
    for kind in (KILLED.pattern, "^error: ", r"^[\w.]+(Error|Exception|Exit): ", "^ERROR: "):
        if found := [line for line in lines if re.search(kind, line)]:
            return found[0]
    return lines[-1] if lines else ""
