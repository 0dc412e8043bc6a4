"""The start of a stage's process, before it imports anything heavy."""

import ctypes
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path


def set_up() -> None:
    """Tie the process to the `dvc` that started it; exit with one line if packages or temporary space are missing."""
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        # PR_SET_PDEATHSIG: a stage that outlives a killed `dvc` would write among the outputs of the next run.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    packages = "PIL cpuinfo jinja2 markdown_it matplotlib pandas pooch pydantic scipy tensorflow tqdm yaml"
    missing = [name for name in packages.split() if not find_spec(name)]
    if missing:
        sys.exit(
            f"error: {sys.executable or 'this python'} lacks {', '.join(missing)}: run `make setup` once, then "
            "`source .venv/bin/activate`, and type it again"
        )
    from stages.shared import inputs  # needs packages

    inputs.note()
    try:
        tempfile.gettempdir()  # TensorFlow needs it
    except OSError as error:
        sys.exit(f"error: no temporary folder: {error.strerror}: is the disk full?")


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: every batch needs the same sizes again, and the system clears each page it gives.

    No bit depends on it. See mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD; an older glibc refuses more
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX: other arenas give large blocks back


def memory() -> int:
    """Bytes that this process can have: the machine's memory, or less under ``ulimit -v`` or in a container."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return min([machine, *_cgroup_limits(), *([] if limit == resource.RLIM_INFINITY else [limit])])


def _cgroup_limits() -> Iterator[int]:
    """What Linux's control groups allow this process, see cgroups(7)."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in groups:
        root, file = "/sys/fs/cgroup", "memory.max"
        if controllers == "memory":
            root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        for place in (Path(root + path), Path(root)):
            with suppress(OSError, ValueError):  # "max"
                yield int((place / file).read_text())
