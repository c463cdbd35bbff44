"""Settings of the process."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of writing to 64 MB that were had and given back before.
FAULTS = """
import ctypes, resource
from diffax import runtime

if {reuse}:
    runtime.reuse_memory()
libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(reuse, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS.format(reuse=reuse)],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_memory_that_was_freed_is_used_again():
    """64 MB are 16,384 pages of 4 kB, or 32 of 2 MB; fewer where the pages are larger still."""
    new = faults(False)
    assert new >= 16
    assert faults(True) < new / 4
    # Who tells glibc by the environment is left alone.
    assert faults(True, MALLOC_ARENA_MAX="2") > new / 2
