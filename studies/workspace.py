"""Undo what ``dvc exp run --queue`` does to the workspace if it was killed meanwhile.

DVC stashes the user's changes, detaches HEAD, writes the experiment's ``params.yaml``, and then undoes all that.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.shared.files import write_whole

NOTE = Path(".dvc/tmp/study.json")


def git(*arguments: str) -> str:
    """What a ``git`` command prints; nothing if it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _stash() -> str:
    return git("rev-parse", "--quiet", "--verify", "refs/stash")


@contextmanager
def noted() -> Iterator[None]:
    """Keep a note of the workspace's state while DVC changes it."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    note = {"branch": git("symbolic-ref", "--quiet", "HEAD"), "stash": _stash(), "changed": bool(changed)}
    write_whole(NOTE, json.dumps(note).encode())
    try:
        yield
    finally:
        NOTE.unlink()


def mend() -> None:
    """Restore branch, changes and ``params.yaml`` if a kill has left a note behind."""
    if not NOTE.exists():
        return
    note = json.loads(NOTE.read_text())
    Path(git("rev-parse", "--git-path", "index.lock")).unlink(missing_ok=True)
    if note["branch"]:
        git("symbolic-ref", "HEAD", note["branch"])  # DVC detached it at the same commit
    while _stash() != note["stash"] and "dvc-exp:" in git("log", "-1", "--format=%s", "refs/stash"):
        git("stash", "drop", "--quiet")
    if _stash() != note["stash"]:
        git("reset", "--quiet", "--hard")
        git("stash", "pop", "--quiet", "--index")
    elif not note["changed"]:
        git("reset", "--quiet")
        git("checkout", "--quiet", "HEAD", "--", "params.yaml")
    NOTE.unlink()
    print("this study was killed while DVC queued an experiment; your files are restored", flush=True)
