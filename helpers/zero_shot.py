"""What a joint space of images and words gives without training: classes from a sentence each, and search both ways.

Shapes: B images, C classes, Q queries, G vectors to search, E embedding width. All vectors have length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.files import CaptioningError

TEMPLATES = ("a photo of {}.", "a picture of {}.", "there is {}.")


def class_vectors(encoder, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Returns a vector a class [C, E]: the mean over several sentences about it (Radford et al. 2021, section 3.1.4).

    `classes` are words that fit into the templates' braces: "a dog", "two children".
    """
    if not classes or not templates or not all("{}" in template for template in templates):
        raise CaptioningError("Zero-shot needs at least one class, and templates that hold {} where the class goes.")
    sentences = [template.replace("{}", name) for name in classes for template in templates]
    vectors = encoder.encode_text(sentences).unflatten(0, (len(classes), len(templates)))  # [C, templates, E]
    return F.normalize(vectors.mean(1), dim=-1)


def classify(encoder, images: Tensor, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Returns probabilities [B, C] of image vectors [B, E]: a softmax over the classes, at the model's temperature."""
    vectors = class_vectors(encoder, classes, templates)
    return (encoder.logit_scale * F.normalize(images.float(), dim=-1) @ vectors.to(images.device).T).softmax(-1)


def search(queries: Tensor, vectors: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Returns cosines [Q, k] and rows [Q, k] of the k vectors [G, E] nearest to each query [Q, E], best first."""
    similarity = F.normalize(queries.float(), dim=-1) @ F.normalize(vectors.float(), dim=-1).T  # [Q, G]
    best = torch.topk(similarity, min(k, similarity.shape[1]), dim=1)
    return best.values, best.indices
