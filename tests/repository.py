"""A temporary repository with this folder's code, tiny images and a tiny network, driven by real `dvc` commands."""

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
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = (
    "dvc.yaml", "stages", "studies", "tools", "benchmarks", "predict.py", "export.py", "Makefile", "README.md", "docs",
    ".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/plots", "data/raw/mnist.npz", "data/raw/cifar10.yaml",
    "data/raw/same.yaml", "data/raw/random.yaml", "data/prepared/.gitkeep", "models/.gitkeep", "reports/.gitkeep",
)  # fmt: skip
# Equal inputs give these files equal bytes.
RESULTS = ("data/prepared/*.npz", "models/*.keras", "reports/pretrain/*", "reports/finetune_*/*", "reports/figures/*")


def tiny_params() -> dict:
    """Return settings with a tiny dataset and network, and a section for each training stage of ``dvc.yaml``."""
    params = Settings().model_dump() | {"threads": 2}
    params["data"] |= {"path": "data/raw/tiny.npz", "source_classes": [0, 1], "target_classes": [2, 3]}
    params["model"] |= {"conv_filters": [4, 4], "dense_units": [8, 6]}
    for name in STAGES.keys() - {"prepare", "report"}:
        section = params.setdefault(name, Settings().finetune_fc.model_dump())
        section |= {"epochs": 2, "batch_size": 16}
    return params


class Repository:
    """A repository at `path` with one commit, and the commands that a user types there."""

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
        self.commit("A tiny pipeline")

    def _set_up(self, path: Path) -> None:
        self.path = path
        home = path.parent / f"home of {path.name}"
        home.mkdir()
        (home / ".gitconfig").write_text("[user]\nname = A Tester\nemail = tester@example.org\n")
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KERAS_HOME": str(home / "keras"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "PAGER": "cat",
        }

    def clone(self, path: Path) -> "Repository":
        """Clone the commits."""
        self.run("git", "clone", "-q", str(self.path), str(path))
        clone = object.__new__(Repository)
        clone._set_up(path)
        return clone

    def run(self, *command: str, check: bool = True, **options) -> str:
        """Run a command; return its output, errors included."""
        result = subprocess.run(
            command, cwd=self.path, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False, **options,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"{command} failed:\n{result.stdout}"
        return result.stdout

    def dvc(self, *arguments: str, check: bool = True) -> str:
        """Run a `dvc` command; return its output."""
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def start(self, *command: str, **environment: str) -> tuple[subprocess.Popen, Path]:
        """Start a command in a process group of its own; return it and the file that gets its output."""
        log = Path(tempfile.mkstemp(prefix="log", dir=self.path.parent)[1])
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True,
                # A shell's background processes ignore Ctrl-C, and their children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        return process, log

    def commit(self, message: str) -> None:
        """Commit everything that is not ignored."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def edit(self, path: str, before: str, after: str) -> None:
        """Replace a text that occurs once in a file."""
        content = (self.path / path).read_text()
        assert content.count(before) == 1
        (self.path / path).write_text(content.replace(before, after))

    def stage_error(self, stage: str, **options) -> str:
        """Run a stage without DVC; return the one line with which it fails."""
        command = STAGES[stage]["cmd"].removeprefix("exec ")
        output = self.run("sh", "-c", f"{command} 2>&1 >/dev/null; echo exit code $?", **options)
        assert "Traceback" not in output
        (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
        assert output.endswith(f"{line}\nexit code 1\n")
        return line

    def bytes_of(self, *patterns: str) -> dict[str, bytes]:
        """Read the files that match, by path."""
        paths = sorted(path for pattern in patterns for path in self.path.glob(pattern) if path.name[0] != ".")
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in paths}


def wait_for(text: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a started process has printed a text."""
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def stages_run(output: str) -> list[str]:
    """List the stages that ran, from the output of `dvc repro` or `dvc exp run`."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]
