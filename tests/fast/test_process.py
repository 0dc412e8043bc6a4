"""What a process asks of the system."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from stages.shared.process import keep_freed_memory

libc, size = ctypes.CDLL(None), 20_000_000
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(faults(), faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's alone")
def test_freed_memory_is_kept_for_the_next_that_asks():
    printed = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    first, second = map(int, printed.split())
    assert 10 * second < first
