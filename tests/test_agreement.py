"""Agreement of scores with grades: by hand, against the definition, and Flickr8k's file of grades."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import agreement
from helpers.agreement import Judged, kendall_tau_c, read_judgements
from helpers.files import CaptioningError


def test_tau_by_hand() -> None:
    assert kendall_tau_c([1, 2, 3, 4], [1, 1, 2, 2]) == pytest.approx(1)  # four of the six pairs count, all in order
    assert kendall_tau_c([4, 3, 2, 1], [1, 1, 2, 2]) == pytest.approx(-1)
    # pairs with different grades: (1, 3), (1, 4), (2, 3), (2, 4); one of them out of order: (3 - 1) / 4
    assert kendall_tau_c([1, 3, 2, 4], [1, 1, 2, 2]) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=12))
def test_tau_is_its_definition_in_blocks_of_any_size(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    least = min(len(set(x)), len(set(y)))
    if least < 2:
        with pytest.raises(CaptioningError, match="two different"):
            kendall_tau_c(x, y)
        return
    order = [(a[0] - b[0]) * (a[1] - b[1]) for a, b in itertools.combinations(pairs, 2)]
    balance = sum(o > 0 for o in order) - sum(o < 0 for o in order)
    expected = 2 * balance / (len(pairs) ** 2 * (least - 1) / least)
    whole, agreement.BLOCK = agreement.BLOCK, 3
    try:
        assert kendall_tau_c(x, y) == pytest.approx(expected)
    finally:
        agreement.BLOCK = whole


def test_lists_of_other_lengths_are_named() -> None:
    with pytest.raises(CaptioningError, match=r"\(2,\) and \(3,\)"):
        kendall_tau_c([1, 2], [1, 2, 3])


def test_every_grade_of_a_caption_is_a_pair() -> None:
    judged = Judged()
    judged.add("a", ["x"], "one", [1, 2])
    judged.add("b", ["y"], "two", [3])
    assert judged.tau([0.1, 0.9]) == pytest.approx(kendall_tau_c([0.1, 0.1, 0.9], [1, 2, 3]))
    assert judged.references == {"0": ["x"], "1": ["y"]} and judged.hypotheses["1"] == "two"


def test_flickr8ks_file_of_grades(tmp_path: Path) -> None:
    references = {"a.jpg": ["a0", "a1"], "b.jpg": ["b0", "b1"]}
    path = tmp_path / "ExpertAnnotations.txt"
    path.write_text("a.jpg\tb.jpg#1\t1\t1\t2\na.jpg\ta.jpg#0\t4\t4\t4\na.jpg\tlost.jpg#0\t1\t1\t1\nb.jpg\ta.jpg#0\t2\t3\t4\n")
    judged = read_judgements(path, references)
    assert list(judged.images.values()) == ["a.jpg", "b.jpg"]  # not its own image, and none that is not here
    assert list(judged.hypotheses.values()) == ["b1", "a0"] and judged.grades["0"] == [1, 1, 2]
    path.write_text("a.jpg\tb.jpg\t1\n")
    with pytest.raises(CaptioningError, match="line 1"):
        read_judgements(path, references)
    path.write_text("c.jpg\tb.jpg#1\t1\t1\t2\n")
    with pytest.raises(CaptioningError, match="no caption of these"):
        read_judgements(path, references)
