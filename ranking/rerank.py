"""Beam search finds captions that are likely; a dual encoder such as CLIP says which of them fits the photo best, the
captions of similar photos which of them people would say, and a classifier which of them names what is there.

Shapes: B images, K candidates of each, E width of the joint space of images and captions, D of the frozen encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.files import CaptioningError
from helpers.text import normalise
from ranking.consensus import Consensus
from ranking.tags import Seen

# Candidates are also judged by what an encoder sees that never read the training captions: in the eyes of one that was
# trained on them, training photos are further from all others than new photos are.
FROZEN, FROZEN_KIND = "efficientnet-lite2", "pooled+mirror"
# English words that may well stand in a sentence twice, the first ones not at its end.
OPEN = frozenset(
    ["a", "an", "the", "and", "of", "in", "on", "at", "with", "to", "from", "by", "for", "into", "through", "while",
     "as", "is", "are", "his", "her", "their", "its", "front"]
)  # fmt: skip
FUNCTION = OPEN | {"up", "down", "over", "it"}
# Of what is added to a candidate's score; 0 is off.
WEIGHTS = ("clip_weight", "consensus_weight", "tag_weight", "flaw_weight")


def rerank(
    groups: Sequence[Sequence],
    captions: Sequence[Sequence[str]],
    vectors: Tensor | None,
    encoder,
    frozen: Tensor | None = None,
    *,
    clip_weight: float = 0.0,
    consensus_weight: float = 0.0,
    tag_weight: float = 0.0,
    flaw_weight: float = 0.0,
    seen: Sequence[Seen | None] = (),
) -> list[list]:
    """Returns the groups of Hypothesis, each sorted anew by score + `clip_weight` * cosine of image and caption
    + `consensus_weight` * what `ranking.consensus.Consensus.score` gives the caption + `tag_weight`, if the caption
    says what is `seen` in the image - `flaw_weight` for each flaw that `flaws` counts.

    captions: the K texts of each image's candidates. vectors: [B, E], the images in the joint space; frozen: [B, D],
    the images as the frozen encoder sees them; each is needed for its own weight. seen: one entry an image, from
    `ranking.tags.find_tags`. The score is near a mean log-probability a token (see `length_penalty`), the cosine
    between -1 and 1: at a weight of 2 a difference of 0.1 in cosine counts as much as one of 0.2 in the score. Each
    hypothesis carries the new score.
    """
    flat = [caption for group in captions for caption in group]
    extra = [0.0] * len(flat)
    if flat and clip_weight:
        owner = torch.tensor([image for image, group in enumerate(captions) for _ in group])
        texts = encoder.encode_text(flat).float().cpu()  # [sum of K, E], of length 1
        cosine = (F.normalize(vectors.float().cpu(), dim=-1)[owner] * texts).sum(-1).tolist()
        extra = [clip_weight * value for value in cosine]
    if flat and consensus_weight:
        if not hasattr(encoder, "folder"):
            raise CaptioningError(f"{encoder.name} knows no captions of other photos. Set consensus_weight to 0.")
        usual = [value for group in _consensus(encoder.folder).score(frozen, captions) for value in group]
        extra = [value + consensus_weight * more for value, more in zip(extra, usual, strict=True)]
    if tag_weight and seen:
        said = [known is not None and known.tag.said_in(c)
                for known, group in zip(seen, captions, strict=True) for c in group]  # fmt: skip
        extra = [value + tag_weight * hit for value, hit in zip(extra, said, strict=True)]
    if flaw_weight:
        extra = [value - flaw_weight * flaws(caption) for value, caption in zip(extra, flat, strict=True)]
    ranked, rest = [], iter(extra)
    for group in groups:
        scored = [replace(h, score=h.score + next(rest)) for h in group]
        ranked.append(sorted(scored, key=lambda h: -h.score))
    return ranked


def flaws(caption: str) -> int:
    """Returns how many of two flaws a caption has: a word said twice ("a cat is on a cat"; words of FUNCTION may be),
    and an end in the middle of a phrase ("a cat is on a").

    Self-critical training brings both: an n-gram that the references hold is a gain wherever it stands.
    """
    words = normalise(caption)
    meant = [word for word in words if word not in FUNCTION]
    return (len(meant) > len(set(meant))) + (bool(words) and words[-1] in OPEN)


def image_vectors(encoder, features: Tensor) -> Tensor:
    """Returns vectors [B, E] of grids [B, R, D] that `encoder` made. Raises CaptioningError when it cannot compare."""
    if not hasattr(encoder, "embed_grid") or features.shape[1] != encoder.regions:
        raise CaptioningError(
            f"clip_weight compares photos with captions, which needs the grid of an encoder with a text side such as "
            f"pocket-clip; here are {features.shape[1]} vectors an image from {encoder.name}. Set clip_weight to 0."
        )
    return encoder.embed_grid(features)


@cache
def _consensus(folder: Path) -> Consensus:
    return Consensus.load(folder)
