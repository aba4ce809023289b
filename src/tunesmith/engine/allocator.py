"""Keep the memory of a step for the next one.

A step's large tensors are given back to the system and asked for again, page by page, thousands of times; on a CPU that
costs more than the elementwise work done in them. Two settings of the process, which change no number:

- glibc keeps freed memory (mallopt), where glibc is;
- torch asks Linux for large pages, an option of torch's own that it reads once, before its first allocation.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of <malloc.h>
MOST = 2**31 - 1  # the largest that mallopt takes, in bytes
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch's CPU allocator


def keep_memory() -> bool:
    """Set the process up before torch is imported. Returns whether the allocator is one that can be told."""
    if not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault(LARGE_PAGES, "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(MMAP_THRESHOLD, 1 << 30) and mallopt(TRIM_THRESHOLD, MOST))
