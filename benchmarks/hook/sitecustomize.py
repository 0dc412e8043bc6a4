"""Kill a stage while it writes the file named by DIE_WHILE_WRITING; Python imports this first. See ``kills.py``."""

import errno
import io
import os
import signal
from pathlib import Path

MOMENT, _, OUTPUT = os.environ.get("DIE_WHILE_WRITING", "").partition(" ")
UNFINISHED = Path(OUTPUT).parent / f".{Path(OUTPUT).name}.unfinished"  # the name in stages.shared.files
open_path, replace = Path.open, Path.replace


class Unfinished(io.FileIO):
    """A file whose first write stops halfway, as the process is killed or the disk is full."""

    def write(self, content: memoryview) -> int:
        super().write(content[: len(content) // 2])
        if MOMENT == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), OUTPUT)
        os.kill(os.getpid(), signal.SIGKILL)


def open_and_die(path: Path, *arguments, **options) -> io.IOBase:
    if path != UNFINISHED or MOMENT == "after":
        return open_path(path, *arguments, **options)
    if MOMENT == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    return io.BufferedWriter(Unfinished(path, "w"))


def replace_and_die(path: Path, target: Path) -> Path:
    replaced = replace(path, target)
    if path == UNFINISHED:
        os.kill(os.getpid(), signal.SIGKILL)
    return replaced


if OUTPUT:
    Path.open, Path.replace = open_and_die, replace_and_die
