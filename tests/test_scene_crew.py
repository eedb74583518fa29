"""Pocket Scenes drawn by several processes: the same pictures, whoever draws them and whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocket_scenes import crew as scene_crew
from pocket_scenes.crew import draw_all, draw_one

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@pytest.fixture
def three_workers(monkeypatch) -> list[subprocess.Popen]:
    """Has three workers draw whatever the machine has, for sets of any size; returns them once they are hired."""
    monkeypatch.setattr(scene_crew, "FEW", 1)
    monkeypatch.setattr(scene_crew, "usable_cores", lambda: 3)
    hired, hire = [], scene_crew._hire
    monkeypatch.setattr(scene_crew, "_hire", lambda *task: hired.extend(hire(*task)) or hired)
    return hired


def test_workers_draw_what_one_process_draws(three_workers, monkeypatch) -> None:
    alone = [draw_one(7, number, 48) for number in range(8)]
    monkeypatch.setattr(scene_crew, "draw_one", lambda *task: pytest.fail("drawn here and not by a worker"))
    drawn = list(draw_all(7, 8, 48))
    assert [jpeg for jpeg, _, _ in drawn] == [jpeg for jpeg, _, _ in alone]
    assert [sentences for _, sentences, _ in drawn] == [sentences for _, sentences, _ in alone]
    assert len({facts["place"] for _, _, facts in drawn}) > 1
    assert len(three_workers) == 3 and all(worker.poll() is not None for worker in three_workers)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_worker_costs_no_picture(three_workers) -> None:
    running = draw_all(7, 60, 48)
    first = [next(running) for _ in range(3)]
    three_workers[1].send_signal(signal.SIGKILL)
    drawn = first + list(running)
    assert [jpeg for jpeg, _, _ in drawn] == [draw_one(7, number, 48)[0] for number in range(60)]


def test_who_stops_reading_leaves_no_worker(three_workers) -> None:
    running = draw_all(7, 1000, 48)
    next(running)
    running.close()
    assert [worker.poll() is not None for worker in three_workers] == [True] * 3


def test_without_processes_the_pictures_are_drawn_here(three_workers, monkeypatch) -> None:
    def refused(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(scene_crew.subprocess, "Popen", refused)
    assert [jpeg for jpeg, _, _ in draw_all(7, 2, 48)] == [draw_one(7, number, 48)[0] for number in range(2)]
    assert three_workers == []


def test_a_small_set_starts_no_process(monkeypatch) -> None:
    monkeypatch.setattr(scene_crew.subprocess, "Popen", lambda *_, **__: pytest.fail("a process for three pictures"))
    assert len(list(draw_all(7, 3, 48))) == 3


@needs_proc
def test_workers_end_when_the_process_that_reads_is_killed() -> None:
    code = (
        "from helpers import scene_crew\n"
        "scene_crew.FEW, scene_crew.usable_cores = 1, lambda: 2\n"
        "running = scene_crew.draw_all(7, 90000, 48)\nnext(running)\nprint('drawing', flush=True)\n"
        "import time; time.sleep(600)\n"
    )
    root = Path(__file__).resolve().parent.parent
    reader = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "drawing\n"
    workers = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _parent(p) == reader.pid]
    assert len(workers) == 2
    reader.kill()
    reader.wait()
    deadline = time.time() + 60
    while any(_alive(worker) for worker in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _alive(worker)]


def _stat(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return ["Z", "0"]


def _parent(process: Path) -> int:
    return int(_stat(process)[1])


def _alive(number: int) -> bool:
    return os.path.exists(f"/proc/{number}") and _stat(Path(f"/proc/{number}"))[0] != "Z"
