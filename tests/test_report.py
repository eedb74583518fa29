"""The report on a dataset: its figures on a set small enough to count by hand, and the faults that it must find."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from helpers.datasets import Dataset, dataset_report
from helpers.images import NEAR, open_image, perceptual_hash

FLICKR8K = Path(__file__).parents[2] / "shared" / "flickr8k"


def photo(seed: int, size: int = 96) -> Image.Image:
    """Returns soft random shapes, as different between seeds as photos are."""
    values = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)


def small_dataset(folder: Path) -> Dataset:
    rows = [
        ("a.jpg", "A dog runs.", "train"), ("a.jpg", "a Dog runs", "train"), ("b.jpg", "Two dogs run fast!", "train"),
        ("b.jpg", "A dog, a dog.", "train"), ("c.jpg", "A cat sits.", "dev"), ("c.jpg", "The dog", "dev"),
        ("d.jpg", "One caption only", "dev"), ("e.jpg", "x", ""),
    ]
    for number, name in enumerate("abcde"):
        photo(number).save(folder / f"{name}.jpg")
    return Dataset("small", pd.DataFrame(rows, columns=["image", "caption", "split"]), folder)


def test_figures_counted_by_hand(tmp_path):
    report = dataset_report(small_dataset(tmp_path))
    train, dev = report.counts.loc["train"], report.counts.loc["dev"]
    assert (train.images, train.captions, train.captions_per_image, train.fewest, train.most) == (2, 4, 2, 2, 2)
    assert (train.words, train.longest, train.vocabulary, train.repeated) == (3.5, 4, 7, 1)  # 14 words in 4 captions
    assert (dev.images, dev.fewest, dev.most, dev.vocabulary) == (2, 1, 2, 8)
    assert train.new_words == 0 and dev.new_words == pytest.approx(6 / 8)  # all but "a" and "dog"
    assert report.counts.loc["all", "captions"] == 7
    assert report.findings.values.tolist() == [["few captions", "d.jpg", "1, where most images have 2"]]
    assert "few captions: 1" in str(report)


def test_missing_unreadable_and_near_duplicate_images_are_found(tmp_path):
    dataset = small_dataset(tmp_path)
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:700])
    smaller = photo(0).resize((61, 47)).filter(ImageFilter.GaussianBlur(1))
    smaller.save(tmp_path / "d.jpg", quality=40)  # in dev; the same photo as a.jpg in train
    photo(0).save(tmp_path / "e.jpg")
    findings = dataset_report(dataset).findings
    found = {(row.kind, row.image): row.detail for row in findings.itertuples()}
    assert set(found) == {("few captions", "d.jpg"), ("unreadable", "b.jpg"), ("unreadable", "c.jpg"),
                          ("near-duplicate", "a.jpg"), ("near-duplicate", "d.jpg")}
    assert "c.jpg cannot be decoded" in found["unreadable", "c.jpg"]
    assert set(findings[findings.image == "a.jpg"].detail.str.extract(r"like (.+) in (.+) \(")[0]) == {"d.jpg", "e.jpg"}


def test_hash_is_near_for_the_same_photo_and_far_for_others():
    def distance(one, other):
        return int(np.bitwise_count(perceptual_hash(one) ^ perceptual_hash(other)).sum())

    for seed in range(20):
        original = photo(seed, 200)
        buffer = io.BytesIO()
        original.resize((90, 120)).point(lambda value: min(255, int(value * 1.1) + 5)).save(buffer, "JPEG", quality=50)
        assert distance(original, open_image(buffer)) <= NEAR
        assert distance(original, photo(seed + 100, 200)) > 2 * NEAR
    assert perceptual_hash(photo(0)).shape == (32,)
