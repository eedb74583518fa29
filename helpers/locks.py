"""One process at a time: the second waits and then finds the work done. And what a killed process left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import CaptioningError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GRACE = 10  # seconds, far more than pass between the making of a temporary file and its claim


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds its lock; the operating system frees it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+b")  # noqa: SIM115 - closed below, after the block that it guards
    except OSError as error:
        raise CaptioningError(
            f"Cannot write in {folder}: {error.strerror}. Choose another folder by CAPTIONING_CACHE."
        ) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process is at work in {folder}; waiting for it …", file=sys.stderr, flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            import msvcrt

            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
        yield


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Marks a temporary file or folder as that of a living process, so that `sweep` leaves it alone."""
    handle = os.open(path, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, pattern: str) -> None:
    """Removes the temporary files and folders that processes left which were killed: nobody claims them any more."""
    if fcntl is None:
        return
    for left in folder.glob(pattern):
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:  # gone meanwhile, or of another user
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(handle).st_mtime < GRACE:
                continue
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        except OSError:  # claimed, or not ours to remove
            pass
        finally:
            os.close(handle)
