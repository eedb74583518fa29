"""Scores against the official programs, against nltk, and against what a hand can compute."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from helpers import metrics
from helpers.files import CaptioningError
from helpers.metrics import evaluate, read_hypotheses, read_references, score_images, table

FAST = ("BLEU", "ROUGE-L", "CIDEr")
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "tan", "dark", "small")
REFERENCES = {f"{n}.jpg": [f"a {c} dog runs on the grass", f"the {c} dog is running"] for n, c in enumerate(COLOURS)}
HYPOTHESES = {image: captions[0].replace("grass", "sand") for image, captions in REFERENCES.items()}


@pytest.fixture(scope="module")
def official(root: Path) -> dict:
    path = root.parent / "shared" / "metrics" / "coco_caption_reference.json"
    if not path.is_file():
        pytest.skip("the official scores are not here")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ["human", "weak"])
def test_official_scores_without_java(official: dict, case: str) -> None:
    given, wanted = official["cases"][case], official["scores"][case]
    scores = evaluate(given["references"], given["hypotheses"], FAST)
    for metric, value in scores.items():
        assert value == pytest.approx(wanted[metric], abs=1e-6), metric


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_meteor_is_official(official: dict) -> None:
    given, wanted = official["cases"]["human"], official["scores"]["human"]
    assert evaluate(given["references"], given["hypotheses"], ["METEOR"])["METEOR"] == pytest.approx(
        wanted["METEOR"], abs=1e-6
    )


@pytest.mark.parametrize(
    "hypotheses",
    [["a dog runs on the grass", "two men"], ["a dog", "men"], ["dog", "cat"], ["", "a dog"], ["x y z w", "v"]],
)
def test_bleu_of_few_and_short_captions_is_coco_captions(hypotheses: list[str]) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    references = {"1": ["a dog runs on the green grass", "the dog is running"], "2": ["two men sit", "a dog"]}
    given = dict(zip(references, hypotheses, strict=True))
    wanted, each = Bleu(4).compute_score(references, {i: [c] for i, c in given.items()}, verbose=0)
    scored = score_images(references, given, ["BLEU"])
    assert [scored.scores()[name] for name in metrics.BLEU] == pytest.approx(wanted, abs=1e-9)
    alone = scored.per_image()
    for n, name in enumerate(metrics.BLEU):
        assert alone[name].tolist() == pytest.approx(each[n], abs=1e-9)


def test_scoring_prints_and_warns_nothing(capsys: pytest.CaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = evaluate(REFERENCES, dict.fromkeys(REFERENCES, "zebra"), FAST)
        evaluate(REFERENCES, dict.fromkeys(REFERENCES, ""), FAST)
    out = capsys.readouterr()
    assert out.out == out.err == "" and max(scores.values()) < 1e-3
    scores = evaluate(REFERENCES, {image: captions[0] for image, captions in REFERENCES.items()}, FAST)
    assert [scores[name] for name in (*metrics.BLEU, "ROUGE-L")] == pytest.approx([1.0] * 5, abs=1e-6)
    assert scores["CIDEr"] > evaluate(REFERENCES, HYPOTHESES, FAST)["CIDEr"] > 0.5


def test_cider_on_few_images_and_meteor_without_java_say_why_in_one_line(caplog, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    few = {image: REFERENCES[image] for image in list(REFERENCES)[: metrics.MIN_IMAGES_FOR_CIDER - 1]}
    hypotheses = {image: HYPOTHESES[image] for image in few}
    with pytest.raises(CaptioningError, match="at least 10 images, and there are 9"):
        evaluate(few, hypotheses, ["CIDEr"])
    with caplog.at_level("WARNING"):
        scores = evaluate(few, hypotheses)
    assert scores["CIDEr"] is scores["METEOR"] is None and scores["BLEU-1"] > 0.5
    cider, meteor = (record.message for record in caplog.records)
    assert "CIDEr skipped" in cider and "\n" not in meteor
    assert "METEOR skipped" in meteor and "apt-get install" in meteor


def test_meteor_of_counts_by_hand() -> None:
    counts = np.zeros(23)
    counts[:4] = [4, 5, 2, 2]  # 4 words, 5 in the reference, 2 function words in each
    counts[4:8] = [2, 2, 1, 1]  # exact matches: 2 content words and 1 function word on both sides
    counts[20:] = [2, 3, 3]  # in 2 pieces, 3 words on each side
    precision, recall = 1.75 / (0.75 * 2 + 0.25 * 2), 1.75 / (0.75 * 3 + 0.25 * 2)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert metrics.meteor_from_counts(counts) == pytest.approx(mean * (1 - 0.6 * (2 / 3) ** 0.2))
    assert metrics.meteor_from_counts(np.zeros((2, 23))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({"a": ["x"]}, {}, "hypotheses is empty"),
        ({"a": ["x"]}, {"a": "x", "b": "y"}, "'b' should have a list .* it has None and 'y'"),
        ({"a": ["x"], "b": ["y"]}, {"a": "x"}, r"'b' should .* it has \['y'\] and None"),
        ({"a": []}, {"a": "x"}, r"it has \[\] and 'x'"),
        ({"a": "x"}, {"a": "x"}, "it has 'x' and 'x'"),
        ({"a": ["x"]}, {"a": ["x", "y"]}, "and one caption"),
    ],
)
def test_bad_input_is_named(references: dict, hypotheses: dict, message: str) -> None:
    with pytest.raises(CaptioningError, match=message):
        evaluate(references, hypotheses, ["BLEU"])


def write(folder: Path) -> tuple[Path, Path]:
    hypotheses, references = folder / "h.tsv", folder / "r.tsv"
    hypotheses.write_text("".join(f"{i}\t{c}\n" for i, c in HYPOTHESES.items()))
    lines = [f"{image}#{n}\t{c}\r\n" for image, captions in REFERENCES.items() for n, c in enumerate(captions)]
    references.write_text("\ufeff" + "".join(lines), encoding="utf-8", newline="")
    return hypotheses, references


def test_the_command_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    hypotheses, references = map(str, write(tmp_path))
    files = ["--hypotheses", hypotheses, "--references", references]
    assert metrics.main([*files, "--metrics", *FAST, "--intervals", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    wanted = evaluate(REFERENCES, HYPOTHESES, FAST)
    assert result["images"] == 12
    assert {name: result[name] for name in wanted} == pytest.approx(wanted)
    low, high = result["intervals"]["BLEU-4"]
    assert low <= result["BLEU-4"] <= high
    assert metrics.main([*files, "--metrics", "BLUE"]) == 2 and "Did you mean 'BLEU" in capsys.readouterr().err


def test_a_table_shows_scores_intervals_and_what_is_missing() -> None:
    rows = {"one": {"BLEU-4": 0.25, "METEOR": None}, "two": {"BLEU-4": 0.5, "CIDEr": 1.0}}
    shown = table(rows, {"one": {"BLEU-4": (0.2, 0.3)}}, digits=2)
    assert shown.to_dict("index") == {
        "one": {"BLEU-4": "0.25 [0.20, 0.30]", "METEOR": "–", "CIDEr": "–"},
        "two": {"BLEU-4": "0.50", "METEOR": "–", "CIDEr": "1.00"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a.jpg\tx\na.jpg\ty\n", "second caption for 'a.jpg'"),
        (b"a.jpg x\n", "line 1: expected image<TAB>caption"),
        (b"a.jpg\tx\nb.jpg\n", "line 2: expected image<TAB>caption"),
        (b"\tx\n", "expected image<TAB>caption"),
        (b"a.jpg\t\x81\n", "not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "h.tsv").write_bytes(text)
    with pytest.raises(CaptioningError, match=message):
        read_hypotheses(tmp_path / "h.tsv")
    with pytest.raises(CaptioningError, match="no file"):
        read_hypotheses(tmp_path / "absent.tsv")


def test_captions_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "h.tsv"
    path.write_text('a b.jpg\t"a dog\nü.jpg\t\nc.jpg\tnan\n', encoding="utf-8")
    assert read_hypotheses(path) == {"a b.jpg": '"a dog', "ü.jpg": "", "c.jpg": "nan"}
    path.write_bytes(b"\xef\xbb\xbfa.jpg#0\tone\r\n\r\na.jpg#1\ttwo\r\nb#1\tthree\n")
    assert read_references(path) == {"a.jpg": ["one", "two"], "b#1": ["three"]}


def test_cocos_json_is_read(tmp_path: Path) -> None:
    results, annotations = tmp_path / "results.json", tmp_path / "annotations.json"
    said = [{"image_id": 42, "caption": "a dog"}, {"image_id": 7, "caption": "two cats"}]
    results.write_text(json.dumps(said))
    assert read_hypotheses(results) == {"42": "a dog", "7": "two cats"}
    more = [*said, {"image_id": 42, "caption": "one dog"}]
    annotations.write_text(json.dumps({"images": [], "annotations": more}))
    assert read_references(annotations) == {"42": ["a dog", "one dog"], "7": ["two cats"]}
    results.write_text('[{"image": "a"}]')
    with pytest.raises(CaptioningError, match="JSON of image_id and caption"):
        read_hypotheses(results)
