"""The front door: what is saved is what is loaded, what does not belong together is refused, photos get captions."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers import captioner as door
from helpers.captioner import Captioner, available, load_checkpoint, save_checkpoint
from helpers.encoders import load_encoder
from helpers.files import CaptioningError
from helpers.images import open_image
from helpers.text import Vocabulary
from tests.toy_captioners import MODELS

ENCODER = "efficientnet-lite0"
WORDS = ["a", "dog", "cat", "runs", "sits", "the", "red", "blue"]


def write(folder: Path, name: str = "ShowAttendTell", seed: int = 0, words=WORDS) -> Path:
    """A checkpoint of an untrained model over the real encoder: its captions mean nothing, but they are its own."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary(words)
    options = {"attention": 8, "value": 12} if name == "ShowAttendTell" else {}
    model = MODELS[name](len(vocabulary), 1280, embedding=8, hidden=16, **options)
    model.tokenizer, model.end_id = vocabulary, vocabulary.end_id
    with torch.no_grad():
        model.standardise.deviation.fill_(0.5)
        for layer in (model.first_hidden, model.first_cell, model.summary_to_gates, model.output):
            layer.weight.mul_(4)  # or every picture would get the same caption
    kind = "grid" if name == "ShowAttendTell" else "pooled"
    config = {"name": "toy", "encoder": ENCODER, "features": kind, "decoding": {"beam_size": 3, "max_length": 8}}
    return save_checkpoint(folder, model.eval(), config)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("saved") / "toy")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# -- saving and loading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, seed=3)
    torch.manual_seed(99)
    model, config = load_checkpoint(tmp_path)
    again, _ = load_checkpoint(tmp_path)
    assert type(model) is MODELS[name] and not model.training
    assert config["class"] == name and config["encoder"]["fingerprint"] == load_encoder(ENCODER).fingerprint
    assert model.tokenizer.words[4:] == WORDS and model.end_id == 2
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("file", ["model.safetensors", "vocabulary.json"])
def test_a_swapped_file_is_refused(file: str, copy: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=1, words=WORDS[::-1])
    shutil.copy(other / file, copy / file)
    with pytest.raises(CaptioningError, match=rf"{file}.*SHA-256 differs"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": "Evil"}, "Unknown model class 'Evil'"),
        ({"class": "os.system"}, "Unknown model class"),
        ({"tokenizer": "../../secret.json"}, "see tokenizer"),
        ({"format": 99}, "has format 99"),
        ({"options": {"vocabulary_size": 12, "feature_width": 1280, "hidden": 16, "wings": 2}}, "wings"),
        ({"options": {"vocabulary_size": 12, "feature_width": 1280, "hidden": 8}}, "do not fit its configuration"),
        ({"class": "ShowAndTell", "options": {"vocabulary_size": 12, "feature_width": 1280}}, "do not fit"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_configuration_that_does_not_fit_is_refused(changes: dict, message: str, copy: Path) -> None:
    edit(copy, **changes)
    with pytest.raises(CaptioningError, match=message):
        load_checkpoint(copy)


def test_another_version_of_the_encoder_is_refused(copy: Path) -> None:
    encoder = json.loads((copy / "config.json").read_text())["encoder"]
    edit(copy, encoder={**encoder, "fingerprint": "0" * 16})
    with pytest.raises(CaptioningError, match="another version of the encoder"):
        Captioner.load(copy)


def test_a_folder_without_a_checkpoint_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match="is no checkpoint"):
        Captioner.load(tmp_path)
    with pytest.raises(CaptioningError, match="Unknown model 'no-such-captioner'"):
        Captioner.load("no-such-captioner")


def test_available_lists_captioners_alone(tmp_path: Path, monkeypatch) -> None:
    for name, kind in {"b": "ShowAndTell", "a": "ClipCap", "clip": "PocketCLIP", "best": "ShowAttendTell"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"class": kind}))
    (tmp_path / "half").mkdir()
    monkeypatch.setattr(door, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(door, "DEFAULT_MODEL", "best")
    assert available() == ["best", "a", "b"]


# -- captions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(saved: Path) -> Captioner:
    return Captioner.load(saved)


def test_different_photos_get_different_captions(toy: Captioner, samples) -> None:
    captions = toy.caption(samples)
    assert [c.image for c in captions] == [str(path) for path in samples]
    assert all(c.error is None and c.model == "toy" for c in captions)
    assert len({c.caption for c in captions}) > len(samples) // 3


def test_a_photo_is_captioned_alone_as_in_a_batch(toy: Captioner, samples) -> None:
    together = toy.caption(samples[:4])
    for number, photo in enumerate(samples[:4]):
        alone = toy.caption(photo)[0]
        assert alone.caption == together[number].caption
        assert alone.log_prob == pytest.approx(together[number].log_prob, abs=1e-3)  # in fp32 on every processor
    assert [c.caption for c in toy.caption(samples[:4], batch_size=1)] == [c.caption for c in together]


def test_every_way_to_name_photos_gives_the_same_captions(toy: Captioner, samples, tmp_path: Path) -> None:
    two = sorted(samples[:2])
    for photo in two:
        shutil.copy(photo, tmp_path)
    expected = [caption.caption for caption in toy.caption(two)]
    arrays, names = [np.asarray(open_image(photo)) for photo in two], [str(photo) for photo in two]
    ways = {
        "a folder": tmp_path, "its name": str(tmp_path), "a folder in a list": [tmp_path], "a tuple": tuple(two),
        "a generator": (path for path in two), "dict values": {path: path for path in two}.values(),
        "bytes": [path.read_bytes() for path in two], "arrays": arrays, "an array of names": np.array(names),
        "a pandas column": pd.DataFrame({"image": names}).image, "pictures": map(open_image, two),
    }  # fmt: skip
    for way, images in ways.items():
        assert [caption.caption for caption in toy.caption(images, batch_size=2)] == expected, way
    data = two[0].read_bytes()
    for alone in (two[0], str(two[0]), data, arrays[0], open_image(two[0]), io.BytesIO(data)):
        assert [caption.caption for caption in toy.caption(alone)] == expected[:1]
    assert sorted(caption.caption for caption in toy.caption(set(two))) == sorted(expected)


@pytest.mark.parametrize("images", [None, 7, torch.zeros(3, 8, 8), {"a": "dog.jpg"}], ids=lambda i: type(i).__name__)
def test_what_is_no_photo_is_one_error(toy: Captioner, images) -> None:
    with pytest.raises(CaptioningError, match=f"Expected photos to caption, not {type(images).__name__}: a path, a fo"):
        toy.caption(images)


def test_the_device_may_be_chosen_by_the_machine(saved: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Captioner.load(saved, device="auto").device == "cpu"
    with pytest.raises(CaptioningError, match="Device 'warp' cannot be used here. Use auto or cpu."):
        Captioner.load(saved, device="warp")


def test_a_bad_photo_has_its_reason_and_the_others_go_on(toy: Captioner, samples, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    captions = toy.caption([samples[0], tmp_path / "notes.jpg", tmp_path / "gone.jpg", samples[1]])
    assert [c.error is None for c in captions] == [True, False, False, True]
    assert "notes.jpg" in captions[1].error and "gone.jpg" in captions[2].error
    assert captions[1].caption is None and captions[1].log_prob is None
    assert captions[0].caption == toy.caption(samples[0])[0].caption


def test_candidates_are_ordered_and_decoding_options_reach_the_search(toy: Captioner, samples) -> None:
    caption = toy.caption(samples[0])[0]
    assert len(caption.alternatives) == 2  # the checkpoint asks for a beam of 3
    assert len(toy.caption(samples[0], beam_size=5)[0].alternatives) == 4
    assert len(toy.caption(samples[0], max_length=2)[0].words) <= 2
    ranked = toy.caption(samples[0], length_penalty=0.0)[0]
    log_probs = [ranked.log_prob, *(log_prob for _, log_prob in ranked.alternatives)]
    assert log_probs == sorted(log_probs, reverse=True)
    assert toy.caption(samples[0], method="greedy")[0].alternatives == []


def test_words_and_attention_belong_together(toy: Captioner, samples) -> None:
    caption = toy.caption(samples[0])[0]
    assert caption.attention.shape == (len(caption.words), 49)
    torch.testing.assert_close(caption.attention.sum(-1), torch.ones(len(caption.words)))
    assert " ".join(word for word in caption.words if word) == caption.caption


def test_json_has_the_five_entries_and_an_error_where_there_is_one(toy: Captioner, samples, tmp_path: Path) -> None:
    good, bad = (c.as_dict() for c in toy.caption([samples[0], tmp_path / "gone.jpg"]))
    assert list(good) == ["image", "caption", "log_prob", "model", "alternatives"]
    assert list(bad) == ["image", "caption", "log_prob", "model", "alternatives", "error"]
    assert set(good["alternatives"][0]) == {"caption", "log_prob"}
    json.dumps([good, bad])


def test_log_probabilities_are_those_of_the_model(toy: Captioner, samples) -> None:
    caption = toy.caption(samples[0])[0]
    features = toy.encoder.encode([Image.open(samples[0]).convert("RGB")], "grid")
    ids = toy.model.tokenizer.encode(caption.caption)
    ids += [toy.model.end_id] if len(ids) < len(caption.words) else []
    with torch.no_grad():
        logits = toy.model(features, torch.tensor([[1, *ids[:-1]]]))[0].log_softmax(-1)[0]
    assert caption.log_prob == pytest.approx(logits[range(len(ids)), ids].sum().item(), abs=1e-3)
