"""Time and memory that a piece of work takes, its own process or another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CAN_READ = Path("/proc/self/status").exists()
needs_proc = pytest.mark.skipif(not CAN_READ, reason="reads a process's memory in /proc")


def memory(pid: int | str = "self", entry: str = "VmRSS") -> float:
    """Returns the megabytes that a process holds, or with VmHWM the most it ever held."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{entry}:")[1].split()[0]) / 1000


@contextlib.contextmanager
def bounded(seconds: float, megabytes: float, pid: int | str = "self") -> Iterator[None]:
    """Asserts that the block takes at most so many seconds, and that the process never holds more than so many
    megabytes beyond those it held before. Memory is looked at where /proc is; where the system does not let the most be
    counted anew, that at the end of the block.
    """
    entry = "VmRSS"
    if CAN_READ:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the most it held begins anew, see proc(5)
            entry = "VmHWM"
        before = memory(pid)
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < seconds, f"{took:.1f} seconds"
    if CAN_READ:
        more = memory(pid, entry) - before
        assert more < megabytes, f"{more:.0f} MB more ({entry})"
