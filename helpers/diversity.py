"""How varied captions are: what the scores against references do not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from helpers.errors import CaptioningError
from helpers.metrics import bleu_from_counts, tokenize
from helpers.text import ngrams


def diversity(
    captions: Mapping[str, str | Sequence[str]], train_captions: Iterable[str] | None = None
) -> dict[str, float]:
    """Returns how varied the captions of a model are, on the words of the tokeniser.

    captions: image -> one caption, or several. Keys of the result:
    - "length": mean words a caption; "vocabulary": how many different words are used at all;
    - "different": share of captions that are not the same as an earlier one;
    - "distinct-1", "distinct-2": different n-grams over all n-grams (Li et al. 2016, section 5);
    - "mBLEU-4": BLEU-4 of each caption against the others of its image (Shetty et al. 2017, section 4.2), or, with one
      caption an image, against those of all other images; lower is more varied;
    - "unseen": share of captions that no training caption equals word for word, if `train_captions` are given.
    Raises CaptioningError when there are no captions.
    """
    groups = [tokenize([texts] if isinstance(texts, str) else texts) for texts in captions.values()]
    flat = [words for group in groups for words in group]
    if not flat:
        raise CaptioningError("There are no captions to measure.")
    if max(map(len, groups)) == 1:
        groups = [flat]
    keys, counts = [" ".join(words) for words in flat], [ngrams(words) for words in flat]
    result = {
        "length": float(np.mean([len(words) for words in flat])),
        "vocabulary": float(len({word for words in flat for word in words})),
        "different": len(set(keys)) / len(keys),
        "distinct-1": _distinct(counts, 1),
        "distinct-2": _distinct(counts, 2),
        "mBLEU-4": mutual_bleu(groups),
    }
    if train_captions is not None:
        seen = {" ".join(words) for words in tokenize(train_captions)}
        result["unseen"] = sum(key not in seen for key in keys) / len(keys)
    return result


def mutual_bleu(groups: Sequence[Sequence[Sequence[str]]]) -> float:
    """Returns corpus BLEU-4 of each caption (a list of words) against the other captions of its group.

    Groups of one have no others and are left out; 0.0 when nothing is left. Linear in the number of n-grams: each
    n-gram's two largest counts in the group say what it is clipped to without the caption itself.
    """
    rows = [row for group in groups if len(group) > 1 for row in _group_rows(group)]
    return float(bleu_from_counts(np.array(rows, dtype=np.float64).sum(axis=0))[3]) if rows else 0.0


def _group_rows(group: Sequence[Sequence[str]]) -> list[list[int]]:
    counts = [ngrams(words) for words in group]
    largest: dict[tuple, list[int]] = {}
    for of_caption in counts:
        for counter in of_caption:
            for gram, count in counter.items():
                top = largest.setdefault(gram, [0, 0])
                if count > top[0]:
                    top[:] = [count, top[0]]
                elif count > top[1]:
                    top[1] = count
    lengths = Counter(map(len, group))
    rows = []
    for words, of_caption in zip(group, counts, strict=True):
        matches = [
            # the largest count is the caption's own exactly when the second is what the others have
            sum(min(count, largest[gram][1] if largest[gram][0] == count else largest[gram][0])
                for gram, count in counter.items())
            for counter in of_caption
        ]  # fmt: skip
        size = len(words)
        others = (length for length, many in lengths.items() if many > 1 or length != size)
        closest = min(others, key=lambda length: (abs(length - size), length))
        rows.append([*matches, *(max(0, size - n + 1) for n in (1, 2, 3, 4)), size, closest])
    return rows


def _distinct(counts: Sequence[Sequence[Counter]], n: int) -> float:
    of_captions = [orders[n - 1] for orders in counts]
    total = sum(counter.total() for counter in of_captions)
    return len(set().union(*of_captions)) / total if total else 0.0
