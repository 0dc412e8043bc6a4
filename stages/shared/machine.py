"""The machine: its CPU, the memory that a process may use, and how the allocator behaves."""

import ctypes
import os
import platform
import re
import resource
from contextlib import suppress
from pathlib import Path


def cpu() -> tuple[str, str]:
    """Return the CPU's name and its instruction set, such as "x86_64 avx512f avx2": other CPUs give other bits."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        text = ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    vectors = [flag for flag in ("amx_tile", "avx512f", "avx2", "avx", "asimd") if flags and flag in flags[1].split()]
    return name[1] if name else platform.processor() or "unknown", " ".join([platform.machine(), *vectors])


def memory_limit() -> int:
    """Return the bytes this process may use: the machine's memory, or less under ``ulimit -v`` or in a container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    with suppress(OSError):  # control groups, version 2 or 1, see cgroups(7)
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            file = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}.get(controllers, "none")
            folder, _, name = f"/sys/fs/cgroup/{file}".rpartition("/")
            for path in (Path(f"{folder}{group}/{name}"), Path(f"{folder}/{name}")):
                with suppress(OSError, ValueError):  # "max"
                    limits.append(int(path.read_text()))
    return min(limit for limit in limits if limit != resource.RLIM_INFINITY)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory: every batch needs blocks of the same sizes, and the system clears new pages.

    Changes no bit. The page faults of a training step fall from thousands to almost none (3684a4b). See mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**30) or libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD; an older glibc refuses more
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX: other arenas give large blocks back
