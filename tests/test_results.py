"""The line a notebook records and the table that `make run` ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

import run_all
from helpers import results
from helpers.files import CaptioningError


def test_nothing_is_written_outside_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("CAPTIONING_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    results.record(model="a", bleu4=0.2)
    assert list(tmp_path.iterdir()) == []


def test_the_last_record_of_a_model_counts(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "results.jsonl"
    monkeypatch.setenv("CAPTIONING_RESULTS", str(path))
    results.record(model="plain", bleu4=0.1, cider=0.2, captions_per_second=300, seconds=20)
    results.record(model="attention", bleu4=0.3)
    results.record(model="plain", bleu4=0.4, cider=0.5, captions_per_second=310.5, seconds=21.5)
    first, second = results.read(path)
    assert first == {"model": "plain", "bleu4": 0.4, "cider": 0.5, "captions_per_second": 310.5, "seconds": 21.5}
    assert second == {"model": "attention", "bleu4": 0.3, "cider": None, "captions_per_second": None, "seconds": None}


def test_numbers_of_numpy_and_torch_are_accepted(tmp_path: Path, monkeypatch) -> None:
    import numpy as np

    monkeypatch.setenv("CAPTIONING_RESULTS", str(tmp_path / "r.jsonl"))
    results.record(model="a", bleu4=np.float32(0.5), cider=np.float64(0.25))
    assert results.read(tmp_path / "r.jsonl")[0]["bleu4"] == 0.5


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"model": "a"}\nnonsense\n')
    with pytest.raises(CaptioningError, match="line 2"):
        results.read(path)
    assert results.read(tmp_path / "missing.jsonl") == []


def test_the_table_lines_up() -> None:
    text = run_all.table(["model", "data", "BLEU-4"], [["plain", "Pocket Scenes test", "0.412"], ["b", "c", "-"]])
    head, rule, first, second = text.splitlines()
    assert head.split() == ["model", "data", "BLEU-4"] and set(rule) == {"-", " "}
    assert len({len(line) for line in (head, rule, first, second)}) == 1  # numbers end in one column
    assert first.index("Pocket") == second.index("c") == head.index("data")


def test_time_is_shown_in_minutes_and_seconds() -> None:
    assert [run_all.clock(seconds) for seconds in (0.4, 65, 600)] == ["0:00", "1:05", "10:00"]


def test_scores_of_a_card() -> None:
    dev, test = {"BLEU-4": 0.21}, {"BLEU-4": 0.23}
    assert run_all.card_scores({"scores": {"flickr8k dev": dev}}) == ("Flickr8k dev (card)", dev)
    assert run_all.card_scores({"scores": {"flickr8k dev": dev, "flickr8k test": test}})[1] == test
    assert run_all.card_scores({})[1] == {}


def test_the_board_tells_of_every_notebook_that_runs(capsys) -> None:
    first, second = Path("00_photo.ipynb"), Path("01_longer_name.ipynb")
    board = run_all.Board([first, second], rewrite=False)
    board.start(first)
    board.start(second)
    board.cell(second, 1, 4)  # too soon after the last line to be shown
    board.cell(first, 2, 2)
    board.end(first, None)
    board.shown[second] -= run_all.REPORT_EVERY + 1
    board.cell(second, 3, 4)
    board.end(second, "NameError: x")
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] 00_photo        started", "[2/2] 01_longer_name  started", "[1/2] 00_photo        2/2 cells  0:00",
        "[2/2] 01_longer_name  3/4 cells  0:00", "[2/2] 01_longer_name  3/4 cells  0:00  FAILED",
        "01_longer_name.ipynb failed. Its cell and the traceback:", "NameError: x", "",
    ]  # fmt: skip


def test_a_terminal_has_one_line_for_all(capsys) -> None:
    first, second = Path("a.ipynb"), Path("b.ipynb")
    board = run_all.Board([first, second], rewrite=True)
    board.start(first)
    board.start(second)
    board.cell(second, 1, 4)
    board.end(second, None)
    lines = capsys.readouterr().out.replace("\r\x1b[K", "|").split("|")[1:]
    assert lines[:2] == ["[1/2] a 0/0", "[1/2] a 0/0   [2/2] b 0/0"]
    assert lines[2:] == ["[1/2] a 0/0   [2/2] b 1/4", "[2/2] b  1/4 cells  0:00\n"]


def test_notebooks_run_at_once_and_a_failure_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    import nbformat

    monkeypatch.setattr(run_all, "BUILD", tmp_path / "build")
    meet = """import pathlib, time
pathlib.Path("NAME").touch()
end = time.time() + 60
while len(list(pathlib.Path(".").glob("here-*"))) < 2:  # each waits for the other: one after the other would fail
    assert time.time() < end
    time.sleep(0.05)"""
    paths = []
    for name, last in (("one", "print('fine')"), ("two", "1 / 0")):
        book = nbformat.v4.new_notebook()
        book.cells = [nbformat.v4.new_code_cell(meet.replace("NAME", f"here-{name}")), nbformat.v4.new_code_cell(last)]
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(book, paths[-1])
    assert run_all.run_notebooks(paths, at_once=2) == ["two.ipynb"]
    shown = capsys.readouterr().out
    assert "two.ipynb failed" in shown and "ZeroDivisionError" in shown
    assert {path.name for path in (tmp_path / "build").iterdir()} == {"one.ipynb", "one.html", "two.ipynb", "two.html"}
