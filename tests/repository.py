"""A temporary repository with this code, tiny images and a tiny network, driven through real `dvc` commands.

It takes code from the folder that the tests run in, and nothing else: not what its user has committed there.
"""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from stages.settings import Settings
from tiny import tiny_arrays

REPRO = (sys.executable, "-m", "dvc", "repro")
ROOT = Path(__file__).resolve().parent.parent
CODE = (
    "dvc.yaml", "stages", "studies", "benchmarks", "Makefile", "README.md", "docs", ".gitignore", ".dvcignore",
    ".dvc/.gitignore", ".dvc/plots", "data/raw/digits.npz", "data/raw/cifar10.yaml", "data/raw/same.yaml",
    "data/raw/random.yaml", "predict.py", "export.py", "data/prepared/.gitkeep", "models/.gitkeep", "reports/.gitkeep",
)  # fmt: skip


# What has the same bytes whenever the inputs have.
RESULTS = ("data/prepared/*.npz", "models/*.keras", "reports/history/*", "reports/predictions/*", "reports/gradcam/*",
           "reports/record/*", "reports/figures/*")  # fmt: skip


def default_params() -> dict:
    """The default settings, whatever a user has made of ``params.yaml``, with a section for each stage there is."""
    params = Settings().model_dump()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        if stage.startswith("finetune_"):
            params.setdefault(stage, dict(params["finetune_fc"]))
    return params


def tiny_params() -> dict:
    """The default settings with a tiny dataset, network and number of epochs."""
    params = default_params()
    params["threads"] = 2
    params["data"] |= {"path": "data/raw/tiny.npz", "source_classes": [0, 1], "target_classes": [2, 3]}
    params["model"] |= {"conv_filters": [4, 4], "dense_units": [8, 6]}
    for name, section in params.items():
        if name == "pretrain" or name.startswith("finetune_"):
            section |= {"epochs": 2, "batch_size": 16}
    return params


@functools.cache
def warm_server() -> str:
    """The address of a server that runs stages in forks of itself, see ``warm/server.py``; ends with this process."""
    address = str(Path(tempfile.mkdtemp(prefix="warm-")) / "socket")
    command = [sys.executable, ROOT / "tests/warm/server.py", address]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    atexit.register(server.kill)
    assert server.stdout.readline() == b"ready\n"
    return address


class Repository:
    """A repository at `path` with one commit in it, and what a user does there."""

    def __init__(self, path: Path, params: dict | None = None):
        self._set_up(path)
        for name in CODE:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / name, path / name)
        (path / ".dvc/config").write_text("[core]\nanalytics = false\n[plots]\nhtml_template = plots/page.html\n")
        np.savez(path / "data/raw/tiny.npz", **tiny_arrays())
        (path / "params.yaml").write_text(yaml.safe_dump(params or tiny_params(), sort_keys=False))
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "user.name", "A Tester")
        self.run("git", "config", "user.email", "tester@example.org")
        self.commit("A tiny pipeline")

    def _set_up(self, path: Path) -> None:
        self.path = path
        home = path.parent / f"home of {path.name}"
        home.mkdir()
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KERAS_HOME": str(home / "keras"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "PYTHONPATH": str(ROOT / "tests/warm"),
            "WARM": warm_server(),
            "PAGER": "cat",
        }

    def with_processes_of_its_own(self) -> "Repository":
        """The same, its stages started as users start them: to be killed, or in other surroundings."""
        del self.environment["WARM"]
        return self

    def clone(self, path: Path) -> "Repository":
        """Clone what is committed here."""
        self.run("git", "clone", "-q", str(self.path), str(path))
        clone = object.__new__(Repository)
        clone._set_up(path)
        return clone

    def run(self, *command: str, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run a command here; output and errors together in `stdout`."""
        result = subprocess.run(
            command, cwd=self.path, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False, **options,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{command} failed:\n{result.stdout}"
        return result

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run a `dvc` command and return all that it prints."""
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check).stdout

    def start(self, *command: str, **environment: str) -> tuple[subprocess.Popen, Path]:
        """Start a command here in a process group of its own; returns it and the file that gets what it prints."""
        log = Path(tempfile.mkstemp(prefix="log", dir=self.path.parent)[1])
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True,
                # What a shell starts in the background ignores Ctrl-C, and passes that on.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        return process, log

    def commit(self, message: str) -> None:
        """Commit everything that is not ignored."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def bytes_of(self, *patterns: str) -> dict[str, bytes]:
        """The content of the files that match, by path."""
        paths = sorted(path for pattern in patterns for path in self.path.glob(pattern) if path.name[0] != ".")
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in paths}


def wait_for(text: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a process that was started has printed a text."""
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def outputs(stage: dict) -> list[str]:
    """The files and folders that a stage of dvc.yaml writes."""
    entries = [entry for kind in ("outs", "plots", "metrics") for entry in stage.get(kind, [])]
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


def stages_run(output: str) -> list[str]:
    """The stages that a `dvc repro` or `dvc exp run` ran, by what it printed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]
