"""What training minimises: cross entropy, a self-critical reward, the contrastive loss of two towers.

B images, N captions (or samples of them), T tokens, V vocabulary, E width of the joint space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.decoding import decode
from helpers.text import IGNORE, ORDERS, ngrams, normalise, pad

SIGMA = 6.0  # how fast CIDEr-D's length penalty falls
END_WORD = "<end>"


@dataclass
class CrossEntropy:
    """Teacher forcing: the model reads the true caption and is asked for its next word at every position.

    `label_smoothing` spreads that share of each label over all words (Szegedy et al. 2016, section 7).

    Called with a model and a `helpers.text.Batch`; returns the loss summed over tokens, their number, and {}.
    Notebook 02, section 6.
    """

    label_smoothing: float = 0.0

    def __call__(self, model, batch) -> tuple[Tensor, Tensor, dict[str, float]]:
        logits, attention = model(batch.features, batch.inputs, batch.row)
        mask = batch.labels != IGNORE
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        tokens = mask.sum()
        # The extra loss is a mean over captions: each process's part of a batch counts by its captions, not its tokens.
        weight = tokens if batch.length is None else len(batch.labels) * batch.length
        plain = getattr(model, "module", model)  # of several processes, a wrapper shares gradients
        return loss + plain.extra_loss(attention, mask.float()) * weight, tokens, {}


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, section 3.2) with document frequencies from training captions only.

    A caption's end counts as a word, in the references too. Otherwise "a man in a" scores as well as a whole sentence
    and the model learns to stop anywhere. Notebook 08, section 11.
    """

    def __init__(self, references: dict[str, list[str]]):
        """`references`: image name -> captions, of the training split."""
        self.words = {image: [normalise(c) + [END_WORD] for c in captions] for image, captions in references.items()}
        self.frequency: Counter = Counter()
        for captions in self.words.values():
            self.frequency.update({gram for words in captions for counts in ngrams(words) for gram in counts})
        self.log_images = math.log(max(2, len(self.words)))
        self.vectors: dict[str, list[tuple]] = {}

    def _vector(self, words: Sequence[str]) -> tuple[list[dict], list[float], int]:
        """Returns the tf-idf weights of a caption for each order of n-grams, their norms, and its length."""
        weights = [
            {gram: count * (self.log_images - math.log(max(1, self.frequency[gram]))) for gram, count in counts.items()}
            for counts in ngrams(words)
        ]
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, len(words)

    def score(self, image: str, words: Sequence[str]) -> float:
        """Returns the CIDEr-D of one caption against the references of `image`; 10 is a perfect match."""
        if image not in self.vectors:
            self.vectors[image] = [self._vector(reference) for reference in self.words[image]]
        weights, norms, length = self._vector(words)
        total = 0.0
        for their_weights, their_norms, their_length in self.vectors[image]:
            penalty = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
            for mine, theirs, norm, their_norm in zip(weights, their_weights, norms, their_norms, strict=True):
                if norm and their_norm:
                    # A repeated n-gram earns no more than the reference gives it: saying a word twice is no gain.
                    dot = sum(min(w, theirs[gram]) * theirs[gram] for gram, w in mine.items() if gram in theirs)
                    total += penalty * dot / (norm * their_norm)
        return 10.0 * total / (ORDERS * len(self.vectors[image]))


@dataclass
class SelfCritical:
    """The objective of the second stage: several samples an image, each judged against the mean of the others.

    A sample better than its siblings is made more likely, a worse one less. The mean of the others is a baseline that
    needs no second decoding and leaves the gradient unbiased (Luo 2020, "A better variant of self-critical sequence
    training"). Dropout is off in the policy, so that what is sampled and what is scored are the same model.

    The policy is the model with its logits divided by `temperature`, in sampling and in the loss alike. After cross
    entropy on few captions the plain distribution is flat: its samples are far worse than what beam search finds, and
    training would go into making it sharp, and captions short. At 0.4 the samples are near those that count.

    Called with a model and a `helpers.text.Batch`; returns the loss summed over tokens, their number, and the mean
    reward. Notebook 08, section 11.
    """

    references: dict[str, list[str]]
    samples: int = 5
    temperature: float = 1.0
    max_length: int = 20
    cider: CiderD = field(init=False)

    def __post_init__(self):
        self.cider = CiderD(self.references)

    def __call__(self, model, batch) -> tuple[Tensor, Tensor, dict[str, float]]:
        model.eval()  # no dropout; gradients still flow
        plain = getattr(model, "module", model)
        groups = decode(
            plain, batch.features, "sample",
            samples=self.samples, max_length=self.max_length, temperature=self.temperature,
        )  # fmt: skip
        rewards = torch.tensor(
            [
                [self.cider.score(image, self.words(plain, sample)) for sample in group]
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


def contrastive_loss(images: Tensor, texts: Tensor, owner: Tensor, scale: Tensor | float) -> Tensor:
    """Returns the symmetric contrastive loss of image vectors [B, E] and captions [N, E]; `owner` [N] says whose.

    With one caption an image this is CLIP's loss. With several, each caption has to find its one image, and each image
    shares its probability among its own captions: never each other's wrong answers (Khosla et al. 2020, eq. 2).
    Notebook 05, section 4.
    """
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # [B, N]
    text_to_image = F.cross_entropy(logits.T, owner)
    own = owner[None] == torch.arange(len(images), device=owner.device)[:, None]  # [B, N]
    log_shares = logits.log_softmax(1)
    image_to_text = -((log_shares * own).sum(1) / own.sum(1)).mean()
    return (text_to_image + image_to_text) / 2
