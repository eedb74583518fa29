"""CLIPScore and RefCLIPScore: does the caption fit the picture, in a CLIP model's eyes (Hessel et al. 2021)?

Shapes: N images, E width of the joint space of images and captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helpers.files import CaptioningError

WEIGHT = 2.5  # stretches the cosines of CLIP ViT-B/32 to about 0..1; other models' scores compare only among themselves
PROMPT = "A photo depicts "


def clip_scores(
    encoder: Any,
    images: Mapping[str, Any],
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | None = None,
    *,
    weight: float = WEIGHT,
    prompt: str = PROMPT,
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Returns {"CLIPScore": float64 [N]} an image, and "RefCLIPScore" when `references` are given (sections 3 and 3.1).

    encoder: any object with `prepare(image)`, `encode_image(pixels) -> [B, E]` and `encode_text(captions) -> [B, E]`.
    images: name -> path, PIL image, or an image vector [E] that was encoded before. CLIPScore is `weight` times the
    cosine of image and caption, or 0 if that is negative; RefCLIPScore is its harmonic mean with the best cosine of
    caption and reference. Raises CaptioningError when an image or its references are missing.
    """
    names = list(hypotheses)
    for kind, given in (("image", images), *([("reference captions", references)] if references is not None else [])):
        missing = [name for name in names if name not in given]
        if missing:
            raise CaptioningError(f"{len(missing)} captions have no {kind}, the first is that of {missing[0]!r}.")
    pictures = _image_vectors(encoder, [images[name] for name in names], batch_size)  # [N, E]
    captions = _text_vectors(encoder, [prompt + hypotheses[name] for name in names], batch_size)  # [N, E]
    clip = weight * np.maximum((pictures * captions).sum(axis=1), 0.0)
    result = {"CLIPScore": clip}
    if references is not None:
        counts = [len(references[name]) for name in names]
        if not all(counts):
            raise CaptioningError(f"The image {names[counts.index(0)]!r} has no reference captions.")
        texts = [prompt + caption for name in names for caption in references[name]]
        known = _text_vectors(encoder, texts, batch_size)  # [sum of counts, E]
        cosines = (known * np.repeat(captions, counts, axis=0)).sum(axis=1)
        best = np.maximum(np.maximum.reduceat(cosines, np.cumsum([0, *counts[:-1]])), 0.0)
        total = clip + best
        result["RefCLIPScore"] = np.divide(2 * clip * best, total, out=np.zeros_like(clip), where=total > 0)
    return result


def _image_vectors(encoder: Any, images: Sequence[Any], batch_size: int) -> np.ndarray:
    if not images:
        raise CaptioningError("There are no captions to score.")
    if all(hasattr(image, "shape") and len(image.shape) == 1 for image in images):
        return _unit([_array(image) for image in images])
    import torch
    from PIL import Image

    from helpers.images import open_image

    vectors = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            opened = [image if isinstance(image, Image.Image) else open_image(image)
                      for image in images[start : start + batch_size]]  # fmt: skip
            pixels = torch.stack([encoder.prepare(image.convert("RGB")) for image in opened])
            vectors.extend(_array(encoder.encode_image(pixels)))
    return _unit(vectors)


def _text_vectors(encoder: Any, texts: Sequence[str], batch_size: int) -> np.ndarray:
    vectors: list[np.ndarray] = []
    for start in range(0, len(texts), batch_size):
        vectors.extend(_array(encoder.encode_text(list(texts[start : start + batch_size]))))
    return _unit(vectors)


def _array(values: Any) -> np.ndarray:
    """Returns a tensor on any device, or an array, as float64."""
    values = values.detach().float().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
