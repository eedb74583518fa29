"""Pocket Scenes drawn by one process a core; which of them draws a picture changes nothing in it.

A worker writes a line of JSON a picture to its standard output and waits while nobody reads, so it is never more than a
few pictures ahead, holds no file, and ends by itself when the process that reads is killed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.files import usable_cores

FEW = 100  # pictures that one process has drawn before others would have started
MOST = 8  # workers; more would wait for the one that writes
Drawn = tuple[bytes, list[str], dict]


def draw_one(seed: int, number: int, size: int) -> Drawn:
    """Returns the bytes of a JPEG file, five captions and the facts of picture `number` of the set of `seed`."""
    from pocket_scenes.scenes import draw_scene

    picture, sentences, facts = draw_scene(f"{seed}/{number}", size)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92, subsampling=0, optimize=False)
    return file.getvalue(), sentences, facts


def draw_all(seed: int, count: int, size: int) -> Iterator[Drawn]:
    """Yields what `draw_one` returns for the pictures 0 to count - 1, in order."""
    workers = _hire(min(usable_cores(), MOST) if count >= FEW else 1, seed, count, size)
    try:
        for number in range(count):
            line = workers[number % len(workers)].stdout.readline() if workers else b""
            if line.endswith(b"\n"):
                jpeg, sentences, facts = json.loads(line)
                yield base64.b64decode(jpeg), sentences, facts
            else:  # no workers, or one that was killed, for instance for its memory
                yield draw_one(seed, number, size)
    finally:
        _dismiss(workers)


def _hire(workers: int, *task: int) -> list[subprocess.Popen]:
    if workers < 2 or not sys.executable:
        return []
    root = str(Path(__file__).resolve().parent.parent)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    hired: list[subprocess.Popen] = []
    try:
        for first in range(workers):
            command = [sys.executable, "-m", "helpers.scene_crew", str(first), str(workers), *map(str, task)]
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            hired.append(subprocess.Popen(command, env=paths, cwd=root, **streams))  # root: its `helpers`, no other
    except BaseException as error:
        _dismiss(hired)
        if not isinstance(error, OSError):
            raise
        return []  # no process to be had: the pictures are drawn here
    return hired


def _dismiss(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        worker.stdout.close()
        worker.kill()
        worker.wait()


def main(first: int, step: int, seed: int, count: int, size: int) -> None:
    """Draws every `step`-th picture from `first` on and writes each as a line [base64 of the JPEG, captions, facts]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads; it ends this one
    for number in range(first, count, step):
        jpeg, sentences, facts = draw_one(seed, number, size)
        sys.stdout.write(json.dumps([base64.b64encode(jpeg).decode(), sentences, facts]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except BrokenPipeError:  # nobody reads any more
        os._exit(0)
