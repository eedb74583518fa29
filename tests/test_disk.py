"""What is written is whole or not there: full disks, folders that cannot be written, killed runs, odd files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.files import CaptioningError, atomic_write, load_weights, only_one, read_json, save_tensors
from helpers.files import write_json as write

ROOT = Path(__file__).parent.parent


def test_an_error_in_the_middle_leaves_the_old_file(tmp_path) -> None:
    write(tmp_path / "a.json", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert read_json(tmp_path / "a.json") == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits and modes of POSIX")
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path) -> None:
    write(tmp_path / "a.json", "old")
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from helpers.files import CaptioningError, write_json\n"
        "try: write_json(sys.argv[1], 'x' * 5000)\n"
        "except CaptioningError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.json"], cwd=ROOT, capture_output=True, text=True)
    assert f"Cannot write {tmp_path}" in done.stdout and "File too large" in done.stdout, done.stderr
    assert read_json(tmp_path / "a.json") == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    for work in (lambda: write(tmp_path / "file" / "a.json", 1), lambda: only_one(tmp_path / "file").__enter__()):
        with pytest.raises(CaptioningError, match="Cannot write .*file.*CAPTIONING_CACHE"):
            work()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": 1}}'])
def test_what_is_no_json_is_one_message(tmp_path, content) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CaptioningError, match="Cannot read .*a.json as JSON"):
        read_json(tmp_path / "a.json")
    shutil.rmtree(tmp_path)
    with pytest.raises(CaptioningError, match="There is no file"):
        read_json(tmp_path / "a.json")


def test_what_a_killed_process_left_goes_and_a_living_ones_stays(tmp_path) -> None:
    stale, fresh = tmp_path / ".new.a.part", tmp_path / ".new.b.part"
    for left in (stale, fresh):
        left.mkdir()
        (left / "half").write_text("half")
    os.utime(stale, (1, 1))
    write(tmp_path / "a.json", 1)
    assert sorted(os.listdir(tmp_path)) == [".new.b.part", "a.json"]


def test_tensors_are_written_whole_and_readable_by_all(tmp_path) -> None:
    import safetensors

    path = tmp_path / "model.safetensors"
    square = torch.arange(6.0).view(2, 3)
    save_tensors(path, {"a": square.T, "b": square}, {"state": "first"})  # not contiguous, and of one memory
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"state": "first"}
        assert file.get_tensor("a").tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        assert file.get_tensor("b").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_weights_are_read_from_the_usual_files_and_from_nothing_else(tmp_path) -> None:
    layer = torch.nn.Linear(2, 1)
    torch.save({"state_dict": layer.state_dict(), "epoch": 3}, tmp_path / "a.ckpt")
    assert load_weights(tmp_path / "a.ckpt")["weight"].tolist() == layer.weight.tolist()
    torch.save(layer, tmp_path / "object.pt")  # a pickled module could be any program
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "short.pt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:500])
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    wanted = {"object.pt": "could run a program", "page.pt": "is a web page", "lfs.pt": "Git LFS pointer",
              "short.pt": "Cannot read weights", "none.pt": "no named weights", "away.pt": "There is no file"}
    for name, words in wanted.items():
        with pytest.raises(CaptioningError, match=words):
            load_weights(tmp_path / name)
