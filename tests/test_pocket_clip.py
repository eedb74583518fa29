"""PocketCLIP: saved whole or refused, padding without effect, trained in small, zero-shot, and the shipped one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from configs.pocket.pretraining import dual_encoder, fine_tune, save_pocket_clip, train
from helpers.clips import PocketCLIP, Pooling, load_pocket_clip
from helpers.datasets import load_dataset
from helpers.encoders import cache_features, load_encoder
from helpers.files import CHECKPOINTS, CaptioningError
from helpers.text import Vocabulary

CAPTIONS = ["a dog runs on the grass", "two red boats", "a child with a ball in front of a house"]
OPTIONS = {"version": 0, "size": 64, "joint": 32, "heads": 4, "width": 16, "layers": 1}


@pytest.fixture(scope="module")
def model() -> PocketCLIP:
    torch.manual_seed(0)
    return PocketCLIP(Vocabulary.build(CAPTIONS, min_count=1), pretrained=False, **OPTIONS).eval().requires_grad_(False)


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save_pocket_clip(tmp_path, model)
    return tmp_path


def test_a_saved_model_comes_back(model, folder) -> None:
    again = load_pocket_clip(folder)
    assert again.config == model.config and not again.training
    assert F.cosine_similarity(again.text_side(CAPTIONS), model.text_side(CAPTIONS)).min() > 0.9999  # stored as fp16
    encoder = load_encoder(f"pocket-clip:{folder}")
    assert encoder.encode_text(CAPTIONS).shape == (3, 32)
    assert encoder.fingerprint == load_encoder(f"pocket-clip:{folder}").fingerprint


def test_the_encoder_gives_what_training_sees(folder) -> None:
    encoder = load_encoder(f"pocket-clip:{folder}")
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    stem = encoder.features(pixels, "stem")
    with torch.inference_mode():
        vectors, grid = encoder.model.image_side(stem)
    assert grid.shape == (3, encoder.regions, encoder.width)
    assert F.cosine_similarity(encoder.features(pixels, "embedding"), vectors).min() > 0.999
    assert torch.allclose(encoder.encode_image(pixels).norm(dim=-1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize("file", ["model.safetensors", "vocabulary.json"])
def test_swapped_files_are_refused(folder, file) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:-2] + b"  ")
    with pytest.raises(CaptioningError, match=f"{file} is not the file"):
        load_pocket_clip(folder)
    path.unlink()
    with pytest.raises(CaptioningError, match=file):
        load_encoder(f"pocket-clip:{folder}")


def test_padding_never_changes_a_vector(model) -> None:
    together = model.text_side(CAPTIONS)
    for caption, vector in zip(CAPTIONS, together, strict=True):
        assert torch.allclose(model.text_side([caption])[0], vector, atol=1e-5)


@pytest.mark.parametrize("caption", ["", "zebra quilt", "dog " * 500])
def test_odd_captions_get_a_vector(model, caption) -> None:
    vectors = model.text_side([caption, "a dog"])
    assert vectors.shape == (2, 32) and torch.isfinite(vectors).all()


def test_pooling_takes_any_number_of_regions() -> None:
    torch.manual_seed(0)
    pool = Pooling(8, 12, 3, 0.0)
    grid = torch.randn(2, 5, 8)
    assert pool(grid).shape == (2, 12)
    assert torch.allclose(pool(grid), pool(grid[:, [4, 2, 0, 1, 3]]), atol=1e-6)  # a set of regions, in any order
    assert torch.allclose(pool(grid), pool(grid.repeat_interleave(2, dim=1)), atol=1e-6)


@pytest.fixture
def scenes(tmp_path, monkeypatch) -> Path:
    """Forty pictures with captions, in Flickr8k's layout."""
    from pocket_scenes.scenes import generate

    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    return generate(tmp_path / "scenes", images=40, size=64)


def test_one_command_trains_and_saves(scenes, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    config = {
        "kind": "pocket-clip",
        "dataset": {"name": "flickr8k", "data_dir": str(scenes)},
        "model": OPTIONS,
        "vocabulary": {"min_count": 1},
        "captioner": {"hidden": 16, "embedding": 8},
        "training": {"epochs": 2, "images_per_batch": 16, "warmup_steps": 1},
        "output": str(tmp_path / "run"),
    }
    rows = []
    train(config, callback=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["word_loss"] < rows[0]["word_loss"]
    assert load_encoder(f"pocket-clip:{tmp_path / 'run'}").encode_text(["a dog"]).shape == (1, 32)
    assert "output" not in json.loads((tmp_path / "run" / "training.json").read_text())
    with open(tmp_path / "run" / "history.csv") as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.parametrize("train_trunk", [False, True], ids=["frozen", "unfrozen"])
def test_fine_tuning_trains_what_it_may(folder, scenes, train_trunk) -> None:
    encoder, dataset = load_encoder(f"pocket-clip:{folder}"), load_dataset("flickr8k", scenes)
    dual, kind = dual_encoder(encoder, train_trunk)
    first, before = encoder.fingerprint, [parameter.clone() for parameter in dual.trunk.parameters()]
    words = encoder.encode_text(CAPTIONS)
    cached = cache_features(encoder, dataset, kind)
    options = {"epochs": 2, "images_per_batch": 16, "warmup_steps": 1}
    train, dev = dataset.references("train"), dataset.references("dev")
    rows = fine_tune(dual, lambda names, chance: cached[names], train, dev, **options)
    assert rows[1]["train_loss"] < rows[0]["train_loss"] and "text-to-image R@10" in rows[1]
    same = [torch.equal(a, b) for a, b in zip(before, dual.trunk.parameters(), strict=True)]
    assert any(same) and all(same) != train_trunk  # the first half of the trunk is never trained
    assert not torch.equal(words, encoder.encode_text(CAPTIONS)) and encoder.fingerprint != first


def test_only_our_own_clip_is_tuned_here() -> None:
    with pytest.raises(CaptioningError, match="efficientnet-lite0 cannot be tuned here"):
        dual_encoder(load_encoder("efficientnet-lite0"))


# --- The shipped checkpoint


@pytest.fixture(scope="module")
def shipped():
    assert (CHECKPOINTS / "pocket-clip" / "config.json").is_file(), "pocket-clip is part of the course"
    return load_encoder("pocket-clip")


def test_the_shipped_model_meets_its_bar_as_its_card_says(shipped) -> None:
    scores = json.loads((CHECKPOINTS / "pocket-clip" / "config.json").read_text())["scores"]["flickr8k dev"]
    assert scores["text-to-image R@10"] >= 0.45 and scores["image-to-text R@10"] >= 0.55


def test_the_shipped_model_knows_photos_from_their_captions(shipped, samples) -> None:
    sentences = {
        "dog.jpg": "a dog is lying on the grass",
        "horses.jpg": "horses in a field",
        "orchestra.jpg": "a group of people are playing music on a stage",
        "splashing.jpg": "a child is splashing in the water",
    }
    photos = [next(path for path in samples if path.name == name) for name in sentences]
    images = shipped.encode([Image.open(path).convert("RGB") for path in photos], "embedding")
    nearest = (images @ shipped.encode_text(list(sentences.values())).T).argmax(1)
    assert (nearest == torch.arange(4)).sum() >= 3
