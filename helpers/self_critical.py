"""Self-critical sequence training (Rennie et al. 2017): a reward for whole captions, as CIDEr-D sees them.

Shapes: B images, S samples an image, N = B * S rows, T tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from helpers.decoding import decode
from helpers.models import unwrapped
from helpers.text import IGNORE, ORDERS, ngrams, normalise, pad

SIGMA = 6.0  # how fast CIDEr-D's length penalty falls
END_WORD = "<end>"


@dataclass
class _Vector:
    """The tf-idf weights of one caption, per n-gram order, with their norms."""

    weights: list[dict[tuple, float]]
    norms: list[float]
    length: int


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, section 3.2) with document frequencies from training captions only.

    A caption's end counts as a word, in the references too. Otherwise "a man in a" scores as well as a whole sentence
    and the model learns to stop anywhere.
    """

    def __init__(self, references: dict[str, list[str]]):
        """`references`: image name -> captions, of the training split."""
        self.words = {image: [normalise(c) + [END_WORD] for c in captions] for image, captions in references.items()}
        self.frequency: Counter = Counter()
        for captions in self.words.values():
            self.frequency.update({gram for words in captions for counts in ngrams(words) for gram in counts})
        self.log_images = math.log(max(2, len(self.words)))
        self.vectors: dict[str, list[_Vector]] = {}

    def _vector(self, words: Sequence[str]) -> _Vector:
        weights = [
            {gram: count * (self.log_images - math.log(max(1, self.frequency[gram]))) for gram, count in counts.items()}
            for counts in ngrams(words)
        ]
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return _Vector(weights, norms, len(words))

    def score(self, image: str, words: Sequence[str]) -> float:
        """Returns the CIDEr-D of one caption against the references of `image`; 10 is a perfect match."""
        if image not in self.vectors:
            self.vectors[image] = [self._vector(reference) for reference in self.words[image]]
        candidate, total = self._vector(words), 0.0
        for reference in self.vectors[image]:
            penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
            for n in range(ORDERS):
                if not candidate.norms[n] or not reference.norms[n]:
                    continue
                theirs = reference.weights[n]
                # A repeated n-gram earns no more than the reference gives it: saying a word twice is no gain.
                dot = sum(
                    min(w, theirs[gram]) * theirs[gram] for gram, w in candidate.weights[n].items() if gram in theirs
                )
                total += penalty * dot / (candidate.norms[n] * reference.norms[n])
        return 10.0 * total / (ORDERS * len(self.vectors[image]))


def sentence_bleu4(references: Sequence[Sequence[str]], words: Sequence[str]) -> float:
    """Returns BLEU-4 of one caption, with one added to the higher orders' counts (Lin and Och 2004)."""
    mine, theirs = ngrams(words), [ngrams(reference) for reference in references]
    log_precision = 0.0
    for n in range(ORDERS):
        clipped = sum(min(count, max(t[n][gram] for t in theirs)) for gram, count in mine[n].items())
        smooth = 1 if n else 0
        if not clipped + smooth:
            return 0.0
        log_precision += math.log((clipped + smooth) / (sum(mine[n].values()) + smooth)) / ORDERS
    closest = min((len(r) for r in references), key=lambda length: (abs(length - len(words)), length))
    return math.exp(min(0.0, 1 - closest / max(1, len(words))) + log_precision)


@dataclass
class SelfCritical:
    """The objective of the second stage: several samples an image, each judged against the mean of the others.

    A sample better than its siblings is made more likely, a worse one less. The mean of the others is a baseline that
    needs no second decoding and leaves the gradient unbiased (Luo 2020, "A better variant of self-critical sequence
    training"). Dropout is off in the policy, so that what is sampled and what is scored are the same model.

    The policy is the model with its logits divided by `temperature`, in sampling and in the loss alike. After cross
    entropy on few captions the plain distribution is flat: its samples are far worse than what beam search finds, and
    training would go into making it sharp, and captions short. At 0.4 the samples are near those that count.
    """

    references: dict[str, list[str]]
    samples: int = 5
    temperature: float = 1.0
    max_length: int = 20
    bleu_weight: float = 0.0  # how much of sentence BLEU-4 (0 to 1) is added to CIDEr-D (0 to 10)
    cider: CiderD = field(init=False)

    def __post_init__(self):
        self.cider = CiderD(self.references)

    def reward(self, image: str, words: Sequence[str]) -> float:
        reward = self.cider.score(image, words)
        if self.bleu_weight:
            reward += self.bleu_weight * sentence_bleu4(self.cider.words[image], words)
        return reward

    def __call__(self, model, batch) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Returns the summed loss, the number of tokens it is summed over, and the mean reward."""
        model.eval()  # no dropout; gradients still flow
        plain = unwrapped(model)
        groups = decode(
            plain, batch.features, "sample",
            samples=self.samples, max_length=self.max_length, temperature=self.temperature,
        )  # fmt: skip
        rewards = torch.tensor(
            [
                [self.reward(image, self.words(plain, sample)) for sample in group]
                for image, group in zip(batch.images, groups, strict=True)
            ]
        )  # [B, S]
        others = (rewards.sum(1, keepdim=True) - rewards) / max(1, self.samples - 1)
        advantage = (rewards - others).flatten()  # [N]
        rows = [sample.tokens for group in groups for sample in group]
        labels = pad(rows, IGNORE).to(batch.features.device)  # [N, T]
        start = [] if plain.start_id is None else [plain.start_id]
        inputs = pad([start + tokens[:-1] for tokens in rows], plain.end_id).to(labels.device)
        row = torch.arange(len(batch.images), device=labels.device).repeat_interleave(self.samples)
        logits, _ = model(batch.features, inputs, row)
        policy = torch.log_softmax(logits.float() / self.temperature, -1)  # [N, T, V]
        log_probs = policy.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        mask = labels != IGNORE
        loss = -(log_probs * mask * advantage.to(labels.device)[:, None]).sum()
        return loss, mask.sum(), {"reward": rewards.mean().item()}

    @staticmethod
    def words(model, sample) -> list[str]:
        return normalise(model.tokenizer.decode(sample.tokens)) + ([END_WORD] if sample.finished else [])
