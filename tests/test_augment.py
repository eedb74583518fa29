"""Views by random windows of the stem."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.encoders import load_encoder
from helpers.features import _window, crop_views
from helpers.files import CaptioningError


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict:
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = {f"{n}.png": folder / f"{n}.png" for n in range(10)}
    for path in paths.values():
        small = noise.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return paths


def test_views_differ_from_each_other_and_repeat_themselves(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "one"))
    encoder, names = load_encoder("efficientnet-lite0"), list(photos)[:9]
    before = torch.random.get_rng_state()
    first, second = crop_views(encoder, photos, names, "grid", 2, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before) and not encoder.module.training
    assert first.names == names and first.array.shape == (9, 49, 1280) and first.array.dtype == np.float16
    plain = torch.cat([encoder.encode([Image.open(photos[name]).convert("RGB")]) for name in names])
    alike = torch.cosine_similarity(first[names].flatten(1), plain.flatten(1))
    assert (alike > 0.3).all() and (alike < 0.999).all()  # the same photos, seen another way
    assert not np.allclose(first.array, second.array, atol=0.1)
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "two"))
    again = crop_views(encoder, photos, names, "grid", 1, progress=False)[0]
    assert np.array_equal(again.array, first.array)
    assert encoder.module.drop_path == 0.0


def test_pooled_views_are_means_of_the_grid_and_come_from_the_cache(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path))
    encoder, names = load_encoder("efficientnet-lite0"), list(photos)
    grid = crop_views(encoder, photos, names, "grid", 1, progress=False)[0]
    monkeypatch.setattr(type(encoder.module), "tail", lambda *a: pytest.fail("the cache was not used"))
    pooled = crop_views(encoder, photos, names, "pooled", 1, progress=False)[0]
    assert torch.allclose(pooled[names], grid[names].mean(1), atol=1e-3)


def test_a_window_is_part_of_the_stem_at_full_size() -> None:
    stem = torch.arange(14.0)[None, :, None, None].expand(2, 14, 14, 3)
    heights = set()
    for seed in range(30):
        window = _window(stem, random.Random(seed))
        assert window.shape == stem.shape and window.min() >= 0 and window.max() < 13.001
        rows = window[0, :, 0, 0]
        assert (rows.diff() >= 0).all() and 9.999 <= rows[-1] - rows[0] <= 13.001
        heights.add(round((rows[-1] - rows[0]).item()))
    assert len(heights) > 1


def test_what_has_no_stem_or_another_kind_is_refused(photos) -> None:
    class Whole:
        name, module = "whole", torch.nn.Identity()

    with pytest.raises(CaptioningError, match="whole has no stem"):
        crop_views(Whole(), photos, list(photos), "grid", 1)
    with pytest.raises(CaptioningError, match="not 'embedding'"):
        crop_views(load_encoder("efficientnet-lite0"), photos, list(photos), "embedding", 1)
