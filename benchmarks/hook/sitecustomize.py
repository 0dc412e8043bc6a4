"""Python imports this at its start, and a stage dies while it writes what DIE_WHILE_WRITING names; see ``kills.py``."""

import errno
import os
import signal
from pathlib import Path

MOMENT, _, OUTPUT = os.environ.get("DIE_WHILE_WRITING", "").partition(" ")
UNFINISHED = Path(OUTPUT).parent / f".{Path(OUTPUT).name}.unfinished"  # as stages.shared.files names it
write_bytes, replace, link = Path.write_bytes, Path.replace, os.link


def write_bytes_and_die(path: Path, content: bytes | memoryview) -> int:
    if path != UNFINISHED or MOMENT == "after":
        return write_bytes(path, content)
    if MOMENT != "before":
        write_bytes(path, content[: len(content) // 2])
    if MOMENT == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    os.kill(os.getpid(), signal.SIGKILL)


def link_and_die(source: str, target: Path, **options) -> None:
    """A file that is written without a name gets one."""
    if target == UNFINISHED and MOMENT == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if target == UNFINISHED and MOMENT != "after":
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target, **options)


def replace_and_die(path: Path, target: Path) -> Path:
    replaced = replace(path, target)
    if path == UNFINISHED:
        os.kill(os.getpid(), signal.SIGKILL)
    return replaced


if OUTPUT:
    Path.write_bytes, Path.replace, os.link = write_bytes_and_die, replace_and_die, link_and_die
