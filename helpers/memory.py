"""How this process keeps its memory. glibc gives every large block back to the system as soon as it is freed and asks
for it again a moment later; each time the system clears its pages. A network frees and allocates the same few
blocks all the time, so on CPUs that can cost half of the time (`benchmarks/memory.py` prints the ratios).
"""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of malloc.h, with what they are set to: large blocks come from the heap like small ones, and the
# free memory at its top is given back only above 1 GB.
MALLOC_OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 64 << 20)}


def keep_freed_memory() -> bool:
    """Has freed blocks used again. Returns False, and changes nothing, where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in MALLOC_OPTIONS.values())
