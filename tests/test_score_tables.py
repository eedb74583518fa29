"""Captions in files, scores in tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from helpers.files import CaptioningError
from helpers.metrics import markdown, read_hypotheses, read_references, save_table, table, write_hypotheses


def test_captions_survive_a_file(tmp_path: Path) -> None:
    captions = {"a b.jpg": "a dog\nruns\tfast", "ü.jpg": "", "c.jpg": "“so”"}
    write_hypotheses(tmp_path / "h.tsv", captions)
    assert read_hypotheses(tmp_path / "h.tsv") == {"a b.jpg": "a dog runs fast", "ü.jpg": "", "c.jpg": "“so”"}
    with pytest.raises(CaptioningError, match="tab or a line break"):
        write_hypotheses(tmp_path / "h.tsv", {"a\tb": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no captions"),
        (b"a.jpg\tx\na.jpg\ty\n", "line 2: a second caption"),
        (b"a.jpg x\n", "line 1: expected image<TAB>caption"),
        (b"\tx\n", "line 1: expected"),
        (b"\xff\xfea", "not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "h.tsv").write_bytes(text)
    with pytest.raises(CaptioningError, match=message):
        read_hypotheses(tmp_path / "h.tsv")
    with pytest.raises(CaptioningError, match="Cannot read"):
        read_hypotheses(tmp_path / "absent.tsv")


def test_references_repeat_the_image_and_none_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(b"\xef\xbb\xbfa.jpg#0\tone\r\n\r\na.jpg#1\ttwo\r\nb#1\tthree\n")
    assert read_references(path) == {"a.jpg": ["one", "two"], "b#1": ["three"]}
    path.write_text("a.jpg\tx\na.jpg\t\n")
    with pytest.raises(CaptioningError, match="line 2: the reference caption of 'a.jpg' is empty"):
        read_references(path)


def test_the_table_is_the_same_in_every_format(tmp_path: Path) -> None:
    rows = {"one": {"BLEU-4": 0.25, "METEOR": None}, "two|b": {"BLEU-4": 0.5, "CIDEr": 1.0}}
    intervals = {"one": {"BLEU-4": (0.2, 0.3)}}
    frame = table(rows, intervals)
    assert frame.columns.tolist() == ["model", "BLEU-4", "BLEU-4 low", "BLEU-4 high", "METEOR", "CIDEr"]
    back = pd.read_csv(save_table(tmp_path / "t.csv", rows, intervals))
    assert back["BLEU-4"].tolist() == [0.25, 0.5] and back["BLEU-4 low"].tolist()[0] == 0.2
    assert json.loads(save_table(tmp_path / "t.json", rows).read_text()) == {"scores": rows}
    text = save_table(tmp_path / "t.md", rows, intervals).read_text().splitlines()
    assert text == markdown(rows, intervals).splitlines()
    assert text[2] == "| one | 0.250 [0.200, 0.300] | – | – |" and text[3].startswith("| two\\|b | 0.500 | – | 1.000")
    with pytest.raises(CaptioningError, match=r"Known: .csv, .json, .md"):
        save_table(tmp_path / "t.xls", rows)
