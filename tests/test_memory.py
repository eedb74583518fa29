"""Freed memory is kept: the system is asked for it once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.memory import MALLOC_OPTIONS, keep_freed_memory

COUNT_FAULTS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    import helpers
def use():
    for _ in range(20):
        torch.ones(8 << 20)  # 32 MB, written to, freed
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, root) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, mode]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_blocks_are_used_again_without_asking_the_system(root) -> None:
    assert faults("kept", root) < 0.1 * faults("as it comes", root)


def test_other_systems_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
    assert MALLOC_OPTIONS["M_MMAP_MAX"] == (-4, 0)
