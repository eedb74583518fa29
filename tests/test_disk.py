"""Full disks, folders that cannot be written, and two processes at the same place: one message or one copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.files import (
    CaptioningError,
    atomic_write,
    claimed,
    read_json,
    save_tensors,
    sweep,
    whole_files,
    write_json,
)
from helpers.language_models import save_language_model
from tests.bad_server import Page, serving
from tests.job_server import digest, draw, fetch
from tests.small_archives import flickr8k_zip
from tests.toy_language_models import pocket_gpt2

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and modes of POSIX")


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        server.pages["/f.zip"] = Page(flickr8k_zip(images=60))
        yield server


def work(name: str, folder: Path, photos: Path, server) -> dict:
    """A job that works in `folder`, with everything it needs."""
    extra = {
        "encode": {"photos": str(photos), "log": os.devnull}, "train": {"log": os.devnull}, "draw": {}, "pocket": {},
        "fetch": {"url": server.url("/f.zip"), "images": 60}, "save": {"first": 2, "count": 1},
    }[name]  # fmt: skip
    inside = folder / "it" if name in ("draw", "fetch") else folder  # these two make their folder themselves
    return {"work": name, "folder": str(inside), **extra}


def result(answer: dict) -> dict:
    return {name: value for name, value in answer.items() if name != "seconds"}


every_work = pytest.mark.parametrize("name", ["encode", "train", "draw", "fetch", "save"])


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of two megabytes; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@every_work
def test_a_full_disk_is_said_and_costs_nothing(name, jobs, photos, server, small_disk, tmp_path) -> None:
    """Killed half-way, then out of room, then with room again: the end is that of a run that met no trouble."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (expected,) = jobs.run(work(name, whole, photos, server))
    assert expected["status"] == "done", expected
    job = work(name, small_disk, photos, server)
    if name == "save":  # an earlier version, which has to survive
        jobs.run({**job, "first": 1})
    else:
        seconds = expected["seconds"] / 2
        while True:
            (killed,) = jobs.run({**job, "kill_after": seconds})
            if killed["status"] == "killed" and not digest(whole).items() <= digest(small_disk).items():
                break
            seconds /= 2  # it was faster this time, perhaps killed between its end and saying so
            for path in small_disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    before = digest(small_disk, but=(".lock", "features.npy"))  # an array has its full length from the start
    (answer,) = jobs.run(job)
    assert answer["status"] == "refused" and "No space left" in answer["message"], answer
    after = digest(small_disk, but=(".lock", "features.npy"))
    assert all(after.get(file) == value for file, value in before.items() if ".part" not in file)
    if name == "save":
        assert jobs.run({"work": "load", "folder": str(small_disk)})[0]["number"] == 1
    filler.unlink()
    (answer,) = jobs.run(job)
    assert result(answer) == result(expected)
    if name == "save":
        assert jobs.run({"work": "load", "folder": str(small_disk)})[0]["number"] == 2


@every_work
def test_a_file_that_may_not_grow_is_said(name, jobs, photos, server, tmp_path) -> None:
    """The same without a disk of its own, on every system that limits what a file may have."""
    limit = {"fetch": 10_000, "encode": 500}.get(name, 2000)
    (answer,) = jobs.run({**work(name, tmp_path, photos, server), "file_limit": limit})
    assert answer["status"] == "refused" and "File too large" in answer["message"], answer
    assert not list(tmp_path.rglob(".*.part"))
    (answer,) = jobs.run(work(name, tmp_path, photos, server))
    assert answer["status"] == "done"


@every_work
def test_a_folder_that_cannot_be_written_is_said(name, jobs, photos, server, tmp_path) -> None:
    job = {**work(name, tmp_path, photos, server), "unprivileged": True}
    os.chmod(tmp_path, 0o555)
    try:
        (answer,) = jobs.run(job)
        if "capset" in answer.get("message", ""):
            pytest.skip("root cannot give up its privileges here")
        assert answer["status"] == "refused" and "Permission denied" in answer["message"], answer
        assert str(tmp_path) in answer["message"] and os.listdir(tmp_path) == []
    finally:
        os.chmod(tmp_path, 0o755)


@pytest.mark.parametrize("name", ["encode", "pocket", "draw", "fetch"])
def test_what_is_complete_can_be_read_where_nothing_can_be_written(name, jobs, photos, server, tmp_path) -> None:
    job = work(name, tmp_path, photos, server)
    (expected,) = jobs.run(job)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        (answer,) = jobs.run({**job, "unprivileged": True})
        assert result(answer) == result(expected)
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)


@pytest.mark.parametrize("name", ["encode", "pocket", "draw", "fetch", "train"])
def test_two_at_once_both_succeed_with_one_copy(name, jobs, photos, server, tmp_path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    log = tmp_path / "log"
    extra = {"log": str(log)} if name in ("encode", "train") else {}
    (expected,) = jobs.run(work(name, alone, photos, server))
    asked = len(server.asked)
    both = jobs.run(*({**work(name, together, photos, server), **extra} for _ in range(2)))
    assert [result(answer) for answer in both] == [result(expected)] * 2
    if name == "encode":
        assert sum(map(int, log.read_text().split())) == 64  # each photo went through once
    if name == "train":
        assert len(log.read_text().split()) == 6  # each epoch was trained once
    if name == "fetch":
        assert len(server.asked) == asked + 1
    assert not list(tmp_path.rglob(".*.part"))
    assert len(os.listdir(together)) == len(os.listdir(alone))


# -- what they are made of ----------------------------------------------------------------------------------------


def test_a_living_process_keeps_its_temporary_file_and_a_dead_ones_goes(tmp_path) -> None:
    living, dead, fresh = (tmp_path / f".table.json.{name}.part" for name in ("living", "dead", "fresh"))
    folder = tmp_path / ".table.json.folder.part"
    folder.mkdir()
    for path in (living, dead, fresh, folder / "inside"):
        path.write_text("half")
    for path in (living, dead, folder):
        os.utime(path, (1, 1))
    with claimed(living):
        write_json(tmp_path / "table.json", [1])  # sweeps
        assert living.exists() and fresh.exists() and not dead.exists() and not folder.exists()
    sweep(tmp_path, ".table.json.*.part")
    assert not living.exists() and read_json(tmp_path / "table.json") == [1]


@pytest.mark.parametrize("name", ["draw", "fetch"])
def test_a_dataset_takes_its_place_by_one_rename(name, server, tmp_path, monkeypatch) -> None:
    """A copy in place of the rename would show a reader, or a run after a kill, a part of it."""
    rename, seen, folder = os.rename, [], tmp_path / "it"

    def watched(source, target) -> None:
        if Path(target) == folder:
            assert not folder.exists()
            seen.append((os.stat(source).st_ino, digest(Path(source))))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    draw(str(folder)) if name == "draw" else fetch(str(folder), server.url("/f.zip"), 60)
    assert [(folder.stat().st_ino, digest(folder))] == seen and len(seen[0][1]) > 40


def test_a_name_with_brackets_sweeps_its_own_files_alone(tmp_path) -> None:
    other = tmp_path / ".a.x.part"
    other.write_text("half")
    os.utime(other, (1, 1))
    write_json(tmp_path / "[ab]", 1)
    assert other.exists()


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path) -> None:
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert read_json(tmp_path / "a.json") == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": 1}}'])
def test_what_is_no_json_is_one_message(tmp_path, content) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CaptioningError, match="Cannot read .*a.json as JSON"):
        read_json(tmp_path / "a.json")
    shutil.rmtree(tmp_path)
    with pytest.raises(CaptioningError, match="There is no file"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_several_files_take_their_places_together_or_not_at_all(tmp_path, error) -> None:
    folder = tmp_path / "model"
    with whole_files(folder) as part:
        (part / "config.json").write_text("first")
        (part / "weights").write_bytes(b"first weights")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "config.json": "first", "weights": "first weights"
    }  # fmt: skip
    (folder / "history.csv").write_text("beside it")
    with pytest.raises((CaptioningError, KeyboardInterrupt)), whole_files(folder) as part:
        (part / "config.json").write_text("second")
        raise error
    assert (folder / "config.json").read_text() == "first" and (folder / "history.csv").read_text() == "beside it"
    assert os.listdir(tmp_path) == ["model"]
    (stale := tmp_path / ".model.dead.part").mkdir()
    os.utime(stale, (0, 0))  # what a killed process left yesterday
    with whole_files(folder) as part:
        (part / "config.json").write_text("third")
    assert (folder / "config.json").read_text() == "third" and not stale.exists()


def test_tensors_are_written_whole_readable_by_all_and_nothing_else_stays(tmp_path, monkeypatch) -> None:
    """safetensors writes a private file `.tmpXXXXXX` beside the one that it was asked for, and renames it."""
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    square = torch.arange(6.0).view(2, 3)
    save_tensors(path, {"a": square.T, "b": square}, {"state": "first"})  # not contiguous, and of one memory
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"state": "first"}
        assert file.get_tensor("a").tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        assert file.get_tensor("b").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").unlink()

    def interrupted(tensors, file, metadata=None) -> None:
        (Path(file).parent / ".tmpwBY0rV").write_bytes(b"half of")
        raise KeyboardInterrupt

    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(safetensors.torch, "save_file", interrupted)
        save_tensors(path, {"a": torch.zeros(3)})
    assert os.listdir(tmp_path) == ["model.safetensors"] and path.read_bytes() == before
    (stale := tmp_path / ".model.safetensors.dead.part").mkdir()  # what a killed process left yesterday
    (stale / ".tmpwBY0rV").write_bytes(b"half of")
    os.utime(stale, (0, 0))
    save_tensors(path, {"a": torch.zeros(3)})
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_language_model_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch) -> None:
    model, tokenizer = pocket_gpt2()
    save_language_model(tmp_path / "lm", model, tokenizer)
    before = {path.name: path.read_bytes() for path in (tmp_path / "lm").iterdir()}

    def full(self, folder, **_) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(model), "save_pretrained", full)
    with pytest.raises(CaptioningError, match="No space left"):
        save_language_model(tmp_path / "lm", model, tokenizer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "lm").iterdir()} == before
