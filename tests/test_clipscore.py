"""CLIPScore on a CLIP that can be worked out by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.clipscore import clip_scores
from helpers.files import CaptioningError


class ToyClip:
    """Images and captions as counts of three words: red, green, blue. A red image is near the caption "red"."""

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((2, 2)))).permute(2, 0, 1)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((2, 3)) / 128 - 0.2

    def encode_text(self, captions: list[str]) -> torch.Tensor:
        return (
            torch.tensor([[float(len(re.findall(c, text))) for c in ("red", "green", "blue")] for text in captions])
            - 0.1
        )


PICTURES = {name: Image.new("RGB", (8, 8), name) for name in ("red", "green", "blue")}


def test_clipscore_by_hand() -> None:
    captions = {"red": "red", "green": "red", "blue": "a blue and red thing"}
    scores = clip_scores(ToyClip(), PICTURES, captions, prompt="")["CLIPScore"]
    image = np.array([[1.8, -0.2, -0.2], [-0.2, 128 / 128 - 0.2, -0.2], [-0.2, -0.2, 1.8]])
    text = np.array([[0.9, -0.1, -0.1], [0.9, -0.1, -0.1], [0.9, -0.1, 0.9]])
    cosine = (image * text).sum(1) / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1)
    assert cosine[1] < 0
    assert scores.tolist() == pytest.approx((2.5 * np.maximum(cosine, 0)).tolist(), abs=0.02)  # 8-bit colours


def test_refclipscore_is_the_harmonic_mean_with_the_best_reference() -> None:
    captions, references = {"red": "red", "blue": "blue"}, {"red": ["green", "red red"], "blue": ["green"]}
    scores = clip_scores(ToyClip(), PICTURES, captions, references, prompt="", batch_size=1)
    clip = scores["CLIPScore"]
    words = ToyClip().encode_text(["red", "red red"]).double()
    best = torch.cosine_similarity(words[0], words[1], dim=0).item()
    assert scores["RefCLIPScore"][0] == pytest.approx(2 * clip[0] * best / (clip[0] + best))
    assert scores["RefCLIPScore"][1] == 0.0  # no reference points the same way


def test_clipscore_takes_vectors_that_were_encoded_before() -> None:
    pixels = torch.stack([ToyClip().prepare(picture) for picture in PICTURES.values()])
    vectors = dict(zip(PICTURES, ToyClip().encode_image(pixels), strict=True))
    captions = {name: f"the colour {name}" for name in PICTURES}
    assert clip_scores(ToyClip(), vectors, captions)["CLIPScore"].tolist() == pytest.approx(
        clip_scores(ToyClip(), PICTURES, captions)["CLIPScore"].tolist()
    )
    with pytest.raises(CaptioningError, match="no image, the first is that of 'grey'"):
        clip_scores(ToyClip(), PICTURES, {"grey": "x"})
    with pytest.raises(CaptioningError, match="no reference captions"):
        clip_scores(ToyClip(), PICTURES, captions, {**{name: ["x"] for name in captions}, "green": []})
