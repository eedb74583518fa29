"""Our tokens against Stanford's. `ptb_cases.json` holds what coco-caption with PTBTokenizer 3.4.1 makes of strings."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.metrics import tokenize
from helpers.ptb import ptb_tokenize

CASES: dict[str, str] = json.loads((Path(__file__).parent / "ptb_cases.json").read_text(encoding="utf-8"))
# coco-caption's own list, copied letter by letter: it is the standard that ours has to meet.
DROPPED = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]


def official(lines: list[str], folder: Path) -> list[str]:
    """What coco-caption makes of each line, by the Java program. Each line is followed by one of plain words."""
    import pycocoevalcap.tokenizer.ptbtokenizer as ptb

    source = folder / "lines.txt"
    source.write_text("".join(f"{line}\nplain words\n" for line in lines), encoding="utf-8")
    jar = Path(ptb.__file__).parent / ptb.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(source)], capture_output=True, check=True, encoding="utf-8"
    )
    kept = (" ".join(w for w in line.rstrip().split(" ") if w not in DROPPED) for line in done.stdout.split("\n")[::2])
    return [" ".join(line.split()) for line in kept][: len(lines)]


def test_every_stored_case_gives_the_official_words() -> None:
    assert len(CASES) > 1000
    wrong = {
        text: " ".join(ptb_tokenize(text)) for text, words in CASES.items() if " ".join(ptb_tokenize(text)) != words
    }
    assert not wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog isn't on the couch.", "a man 's dog is n't on the couch"),
        ("They cannot see", "they can not see"),
        ('A "NO PARKING" sign (red).', "a no parking sign -lrb- red -rrb-"),
        ("Mr. Smith vs. the U.S. etc.", "mr. smith vs. the u.s. etc."),
        ("T-shirt, 10-foot, 1/2, $5.99 & 50%", "t-shirt 10-foot 1/2 $ 5.99 & 50 %"),
        ("It’s a “smart” one…", "it 's a smart one"),
        ("a dog 😀 runs", "a dog runs"),
        ("一只狗 كلب", "一只狗 كلب"),
        ("two dogs\trun\r\nfast", "two dogs run fast"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_cases_that_a_reader_can_check(text: str, words: str) -> None:
    assert " ".join(ptb_tokenize(text)) == words
    assert tokenize([text, "a dog"]) == [words.split(), ["a", "dog"]]


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_the_stored_cases_are_what_java_says(tmp_path: Path) -> None:
    lines = list(CASES)
    assert official(lines, tmp_path) == [CASES[line] for line in lines]
