"""What ``dvc exp run --queue`` does to the workspace while it runs, undone where it was killed within.

DVC puts the user's changes into Git's stash, detaches HEAD, writes another run's ``params.yaml``, then undoes all that.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.arrays import write_whole

NOTE = Path(".dvc/tmp/study.json")


def git(*arguments: str) -> str:
    """What a ``git`` command prints; nothing where it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def _stash() -> str:
    return git("rev-parse", "--quiet", "--verify", "refs/stash")


@contextmanager
def noted() -> Iterator[None]:
    """Note how the workspace is while DVC changes it."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    note = {"branch": git("symbolic-ref", "--quiet", "HEAD"), "stash": _stash(), "changed": bool(changed)}
    write_whole(NOTE, json.dumps(note).encode())
    try:
        yield
    finally:
        NOTE.unlink()


def mend() -> None:
    """Bring back branch, changes and ``params.yaml`` where a kill has left a note; else do nothing."""
    if not NOTE.exists():
        return
    note = json.loads(NOTE.read_text())
    Path(git("rev-parse", "--git-path", "index.lock")).unlink(missing_ok=True)
    if note["branch"]:
        git("symbolic-ref", "HEAD", note["branch"])  # DVC detaches it where it is
    while _stash() != note["stash"] and "dvc-exp:" in git("log", "-1", "--format=%s", "refs/stash"):
        git("stash", "drop", "--quiet")
    if _stash() != note["stash"]:
        git("reset", "--quiet", "--hard")
        git("stash", "pop", "--quiet", "--index")
    elif not note["changed"]:
        git("reset", "--quiet")
        git("checkout", "--quiet", "HEAD", "--", "params.yaml")
    NOTE.unlink()
    print("this study was killed while it queued runs: what DVC had left of that in your files is undone", flush=True)
