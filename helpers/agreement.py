"""Do people agree with a score? Kendall's tau between a metric's scores of captions and the grades given by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers.caption_files import lines_of
from helpers.files import CaptioningError

BLOCK = 1000  # rows of the table of all pairs at once: 1,000 x 17,000 signs are 17 MB


@dataclass
class Judged:
    """Captions with grades, keyed by a number as text, ready for `score_images(references, hypotheses)`.

    images: key -> the image that was shown; references: key -> what others wrote of it; hypotheses: key -> the caption
    that was graded; grades: key -> its grades, more is better.
    """

    images: dict[str, str] = field(default_factory=dict)
    references: dict[str, list[str]] = field(default_factory=dict)
    hypotheses: dict[str, str] = field(default_factory=dict)
    grades: dict[str, list[float]] = field(default_factory=dict)

    def add(self, image: str, references: Sequence[str], caption: str, grades: Sequence[float]) -> None:
        """Adds one graded caption."""
        key = str(len(self.images))
        self.images[key], self.references[key] = image, list(references)
        self.hypotheses[key], self.grades[key] = caption, list(grades)

    def tau(self, scores: Sequence[float]) -> float:
        """Returns Kendall's tau-c between `scores` (one a caption, in order) and the grades, every grade a pair."""
        flat = [(score, grade) for score, given in zip(scores, self.grades.values(), strict=True) for grade in given]
        return kendall_tau_c(*zip(*flat, strict=True))


def kendall_tau_c(scores: Sequence[float], grades: Sequence[float]) -> float:
    """Returns tau-c: of all pairs, those in the same order less those in the opposite one (Stuart 1953).

    1 when the scores put everything in the order of the grades, -1 in the opposite order, near 0 by chance. With few
    different grades no score could avoid ties; tau-c divides by the most that is possible. Raises CaptioningError when
    there are fewer than two different scores or grades.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(grades, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise CaptioningError(f"Scores and grades should be two lists of one length, not {x.shape} and {y.shape}.")
    least = min(len(np.unique(x)), len(np.unique(y)))
    if least < 2:
        raise CaptioningError("Agreement needs at least two different scores and two different grades.")
    x, y = (np.unique(v, return_inverse=True)[1].astype(np.int32) for v in (x, y))  # ranks: signs of whole numbers
    balance = 0
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        balance += int((np.sign(x[rows, None] - x) * np.sign(y[rows, None] - y)).sum())  # each pair twice
    return balance / (len(x) ** 2 * (least - 1) / least)


def read_judgements(path: str | Path, references: dict[str, list[str]]) -> Judged:
    """Returns the captions that people graded in Flickr8k's ExpertAnnotations.txt (Hodosh et al. 2013, section 4.2).

    A line is `image<TAB>image#number of a caption<TAB>three grades` from 1 (not related) to 4 (perfect). `references`:
    image -> its five captions in the order of the caption file. Lines of images that are not there are left out, and
    so are captions graded with their own image: they are among its references (Hessel et al. 2021, section 4.1).
    Raises CaptioningError on a line in another format, or when nothing is left.
    """
    judged = Judged()
    for number, line in lines_of(path):
        image, _, rest = line.partition("\t")
        name, *grades = rest.split("\t")
        owner, _, which = name.rpartition("#")
        try:
            which, grades = int(which), [float(grade) for grade in grades]
        except ValueError:
            grades = []
        if not grades or not owner:
            raise CaptioningError(f"{path}, line {number}: expected image, image#number and grades, tabs between them.")
        if image in references and owner in references and owner != image and which < len(references[owner]):
            judged.add(image, references[image], references[owner][which], grades)
    if not judged.images:
        raise CaptioningError(f"{path} grades no caption of these images.")
    return judged
