"""Captions as numbers: words, the vocabulary, padding, batches.

Shapes: B images, N captions, T tokens, R regions, D feature width, V vocabulary, H hidden width.
"""

from __future__ import annotations

import random
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.files import CaptioningError, read_json, write_json

IGNORE = -100  # the label of a position that is not scored; PyTorch's cross_entropy skips it by default
PAD, START, END, UNKNOWN = range(4)
ORDERS = 4  # n-grams of one to four words, as BLEU and CIDEr count them
SPECIALS = ["<pad>", "<start>", "<end>", "<unk>"]
_INSIDE = str.maketrans("", "", "'’`´\u200c\u200d")  # apostrophes, and the joiners of Persian and Hindi
# Vowel signs and accents, which Python's \w lacks; not the variation selectors that colour an emoji
_MARKS = "".join(chr(code) for code in range(0x300, 0x20000)
                 if unicodedata.category(chr(code))[0] == "M" and not 0xFE00 <= code <= 0xFE0F)
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{_MARKS}])*")


def ngrams(words: Sequence[str]) -> list[Counter]:
    """Returns how often each n-gram occurs, a Counter for each order. Notebook 08, section 2."""
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, ORDERS + 1)]


def normalise(caption: str) -> list[str]:
    """Returns the words of a caption: lower case, compatibility characters unified, punctuation dropped.

    "A man's well-worn hat ." becomes `["a", "mans", "well", "worn", "hat"]`. Letters of any script keep their vowel
    signs; decomposed accents equal composed ones. Notebook 01, section 6.
    """
    text = unicodedata.normalize("NFKC", caption).lower().translate(_INSIDE)
    return _WORD.findall(unicodedata.normalize("NFKC", text))  # again: a letter may now stand beside its accent


class Vocabulary:
    """The words a model knows, each with a number. Numbers 0 to 3 are `<pad>`, `<start>`, `<end>` and `<unk>`.

    Serves as the `tokenizer` of the CNN-LSTMs: `encode(str) -> ids` and `decode(ids) -> str`. Notebook 01, section 6.
    """

    pad_id, start_id, end_id, unknown_id = PAD, START, END, UNKNOWN
    unsayable = (PAD, START, UNKNOWN)  # numbers that decoding must never choose

    def __init__(self, words: Sequence[str]):
        """`words`: the words in the order of their numbers, without the four special ones."""
        self.words = SPECIALS + list(words)
        self.index = {word: number for number, word in enumerate(self.words)}
        if len(self.index) != len(self.words):
            raise CaptioningError("The vocabulary names a word twice; build it again from the training captions.")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 4) -> Vocabulary:
        """Returns the vocabulary of words seen at least `min_count` times, most frequent first; warns if that is few.

        Give it training captions alone: a word counted on the test split has leaked from it.
        Raises CaptioningError when no word is as frequent.
        """
        captions = list(captions)
        counts = Counter(word for caption in captions for word in normalise(caption))
        kept = [word for word, count in counts.items() if count >= min_count]
        advice = "Lower min_count or add captions; Thai or Chinese need blanks put between their words first."
        if not kept:
            raise CaptioningError(f"No word occurs {min_count} times in these captions. {advice}")
        known = sum(counts[word] for word in kept) / counts.total()
        if known < 0.5:
            warnings.warn(f"{1 - known:.0%} of the words in these captions become <unk>. {advice}", stacklevel=2)
        return cls(sorted(kept, key=lambda word: (-counts[word], word)))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def encode(self, caption: str) -> list[int]:
        """Returns the numbers of a caption's words, without start and end; an unknown word becomes `<unk>`."""
        return [self.index.get(word, UNKNOWN) for word in normalise(caption)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of `ids` joined by blanks, up to the first `<end>`; padding and start are left out."""
        words = []
        for number in ids:
            if number == END:
                break
            if number not in (PAD, START):
                words.append(self.words[int(number)])
        return " ".join(words)

    def save(self, path: str | Path) -> None:
        """Writes the words as JSON."""
        write_json(path, {"words": self.words[len(SPECIALS):]})

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Returns the vocabulary that `save` wrote. Raises CaptioningError when the file is something else."""
        value = read_json(path)
        words = value.get("words") if isinstance(value, dict) else None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CaptioningError(f'{path} is not a vocabulary: expected {{"words": [...]}}.')
        return cls(words)


def pad(sequences: Sequence[Sequence[int]], value: int) -> torch.LongTensor:
    """Returns the sequences as one [N, T] tensor, T the longest, filled with `value`. Notebook 01, section 7."""
    length = max((len(sequence) for sequence in sequences), default=0)
    filled = [list(sequence) + [value] * (length - len(sequence)) for sequence in sequences]
    return torch.tensor(filled, dtype=torch.long).reshape(len(sequences), length)


def teacher_forcing_batch(
    encoded: Sequence[Sequence[int]], start_id: int | None, end_id: int
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Returns inputs and labels, both [N, T]: what the model reads at each position and what it should say next.

    A caption `w1 w2` is read as `<start> w1 w2` and continued as `w1 w2 <end>`: without the end as label decoding would
    never stop. Padding is PAD in the inputs, IGNORE in the labels. With `start_id=None` (a prefix stands before the
    caption, and its last output predicts `w1`) the labels are one longer than the inputs. Notebook 01, section 7.
    """
    start = [] if start_id is None else [start_id]
    inputs = pad([start + list(ids) for ids in encoded], PAD)
    labels = pad([list(ids) + [end_id] for ids in encoded], IGNORE)
    return inputs, labels


@dataclass
class Batch:
    """Images and their captions as numbers. Notebook 01, section 9."""

    images: list[str]
    features: Tensor  # [B, R, D] float32
    row: Tensor  # [N] which image each caption describes
    inputs: Tensor  # [N, T] what the model reads
    labels: Tensor  # [N, T] (one longer behind a prefix) what it should say; IGNORE where nothing is asked
    share: float = 1.0  # this process's part of the global batch's tokens, times the number of processes
    length: float | None = None  # tokens a caption in the global batch, where this is a part of one

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("features", "row", "inputs", "labels")}
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """How many labels are asked for."""
        return int((self.labels != IGNORE).sum())


class CaptionBatches:
    """Batches of one split. Epoch `e` of seed `s` is the same on every machine and after every restart.

    `views`: Features of the same images (plain, mirrored); each batch uses one at random. `process`: (number of this
    process, number of processes). Raises CaptioningError when captions and features share no image, or a batch has
    fewer images than there are processes. Notebook 01, section 9.
    """

    def __init__(
        self, references: dict[str, list[str]], views: Sequence, tokenizer, *, start_id: int | None, end_id: int,
        images_per_batch: int = 32, captions_per_image: int = 5, max_tokens: int = 30, seed: int = 0,
        process: tuple[int, int] = (0, 1),
    ):
        self.images = [image for image in references if all(image in view for view in views)]
        if not self.images:
            raise CaptioningError("No image has both captions and features; do split and cache belong together?")
        self.encoded = {image: [tokenizer.encode(c)[:max_tokens] for c in references[image]] for image in self.images}
        self.views, self.start_id, self.end_id, self.seed = list(views), start_id, end_id, seed
        self.size, self.captions, self.process = images_per_batch, captions_per_image, process

    def __len__(self) -> int:
        return max(1, len(self.images) // self.size)

    def make(self, images: Sequence[str], captions: Sequence[Sequence[Sequence[int]]], view: int = 0) -> Batch:
        """Returns the batch of these images with these encoded captions."""
        features = self.views[view][images]
        features = features[:, None] if features.ndim == 2 else features  # one vector is a grid of one region
        row = torch.tensor([i for i, group in enumerate(captions) for _ in group])
        flat = [caption for group in captions for caption in group]
        return Batch(list(images), features, row, *teacher_forcing_batch(flat, self.start_id, self.end_id))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yields shuffled training batches; the last incomplete one is dropped unless it is the only one."""
        chance = random.Random(f"{self.seed} {epoch}")
        order = chance.sample(self.images, len(self.images))
        number, processes = self.process
        if min(self.size, len(order)) < processes:
            raise CaptioningError(f"A batch has fewer images than the {processes} processes that share it; set "
                                  "images_per_batch, which counts the images of all processes together, higher.")
        for start in range(0, len(self) * self.size, self.size):
            images = order[start:start + self.size]
            captions = [chance.sample(c, min(self.captions, len(c))) for c in (self.encoded[image] for image in images)]
            view = chance.randrange(len(self.views))
            mine = slice(number, None, processes)
            batch = self.make(images[mine], captions[mine], view)
            if processes > 1:
                lengths = [len(caption) + 1 for group in captions for caption in group]
                batch.share = batch.tokens * processes / sum(lengths)
                batch.length = sum(lengths) / len(lengths)
            yield batch

    def in_order(self) -> Iterator[Batch]:
        """Yields every image once with all its captions, for measuring."""
        for start in range(0, len(self.images), self.size):
            images = self.images[start : start + self.size]
            yield self.make(images, [self.encoded[image] for image in images])


def exact_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns logits [..., V] of hidden [..., H] in fp32, whatever precision the model runs in.

    Rounded to the 8 bits of bf16, words of close chances would have the same logit, and a search would take another.
    Notebook 02, section 4.
    """
    return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
