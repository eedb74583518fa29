"""Tags as words: what a classifier is sure to see, read by ClipCap; captions without photos as training examples."""

import json
import random

import numpy as np
import pytest
import torch

from configs.pocket.tags import WithText, average, choose, main, plural
from helpers.captioner import Captioner
from helpers.clipcap import ClipCap
from helpers.encoders import Features, load_encoder
from helpers.trunks import Encoder, class_words, classifier
from tests.small_datasets import folder_with

WORDS, NAMES = class_words()


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return load_encoder("efficientnet-lite0")


@pytest.fixture(scope="module")
def model() -> ClipCap:
    torch.manual_seed(0)
    return ClipCap(1280, regions=4, prefix_length=3, mapper_options={"hidden": 8}, tags=2).eval()


def row(**sure: float) -> torch.Tensor:
    """Returns the scores of a classifier that gives these words these probabilities, and the rest to other classes."""
    scores = torch.full((1, 1280), -30.0)
    for word, probability in {**sure, None: 1 - sum(sure.values())}.items():
        classes = NAMES[:, WORDS.index(word)] > 0 if word else NAMES.sum(1) == 0
        scores[0, :1000][classes] = float(torch.tensor(probability / int(classes.sum())).log())
    return scores


def test_classes_lead_to_words_that_people_use() -> None:
    assert NAMES.shape == (1000, len(WORDS)) and NAMES.sum(1).max() == 1
    assert [WORDS[int(NAMES[number].argmax())] for number in (281, 348)] == ["cat", "sheep"]  # a tabby and a ram


def test_sure_words_are_tags_surest_first(model) -> None:
    assert model.tags(row(dog=0.25, cat=0.4, sheep=0.22)) == [["cat", "dog"]]
    assert model.tags(row(dog=0.19)) == [[]]


def test_tags_stand_behind_the_prefix_as_words(model) -> None:
    features = torch.randn(1, 5, 1280)
    features[:, -1] = row(sheep=0.9)
    prefix = model.prefix(features)
    table = model.language_model.get_input_embeddings().weight
    read = [model.tokenizer.encode("sheep")[0], model.end_id, model.end_id]
    torch.testing.assert_close(prefix[0, -3:], table[read])
    told = torch.cat([features[:, :-1], row(cow=0.9)[:, None]], dim=1)
    torch.testing.assert_close(model.prefix(told)[:, :-3], prefix[:, :-3])  # the picture's part is as it was
    assert not torch.equal(model.start(told).log_probs, model.start(features).log_probs)


def test_tagged_features_are_the_grid_and_what_the_classifier_sees(lite) -> None:
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    tagged, grid = lite.features(pixels, "tagged"), lite.features(pixels, "grid")
    torch.testing.assert_close(tagged[:, :-1], grid)
    scores = classifier(lite.module.version)(grid.mean(1))  # this encoder's trunk is the frozen one
    torch.testing.assert_close(tagged[:, -1, :1000], scores)
    assert not tagged[:, -1, 1000:].any()
    both = lite.features(pixels, "tagged+mirror")
    mirrored = lite.features(pixels.flip(-1), "tagged")
    torch.testing.assert_close(both[:, -1], (tagged[:, -1] + mirrored[:, -1]) / 2)
    torch.testing.assert_close(both[:, :-1], lite.features(pixels, "grid+mirror"))


def test_captions_without_photos_become_examples_balanced_over_tags() -> None:
    text = {f"dog{i}": ["A dog runs.", "Dogs and a cat play."] for i in range(96)}
    text |= {f"sheep{i}": ["Two sheep in a field.", "A field."] for i in range(4)}
    examples = choose(text, 300, 0.0, random.Random(0))
    sheep = [captions for tags, captions in examples.values() if tags == ["sheep"]]
    assert 70 < len(sheep) < 130  # a third: dog, cat and sheep alike
    assert all(captions == ["Two sheep in a field."] for captions in sheep)
    assert (plural("cat"), plural("bus"), plural("pony"), plural("donkey")) == ("cats", "buses", "ponies", "donkeys")


def test_an_example_borrows_a_grid_and_shows_its_own_tags(model) -> None:
    photos = Features(["a", "b"], np.stack([np.full((5, 1280), 1.0), np.full((5, 1280), 2.0)]))
    features = WithText(photos, {"text 0": (["sheep"], ["a sheep"])}, {"text 0": "b"}, train=[])
    out = features[["a", "text 0"]]
    assert out[0].eq(1).all() and out[1, :-1].eq(2).all()
    assert model.tags(out[1:, -1]) == [["sheep"]] and "text 0" in features and "b" in features


def test_training_on_photos_and_text_gives_a_captioner_and_weights_are_averaged(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    rows = [f"{number}.jpg,A dog runs.,{'train' if number < 8 else 'dev'}" for number in range(12)]
    names = [f"{number}.jpg" for number in range(12)]
    folder = folder_with(tmp_path / "photos", "\n".join(["image,caption,split", *rows]), *names)
    text = ["image\tcaption", *(f"{number}\tTwo sheep in a field." for number in range(4))]
    (tmp_path / "text.tsv").write_text("\n".join(text))
    stage = {"images_per_batch": 4, "epochs": 1, "validate_images": 2}
    config = {
        "name": "tagged", "dataset": {"name": "folder", "data_dir": str(folder)}, "encoder": "pocket-clip",
        "features": "tagged", "inference_features": "tagged+mirror", "output": str(tmp_path / "run"),
        "model": {"class": "ClipCap", "regions": 49, "mapper_options": {"hidden": 8}, "tags": 2},
        "stages": [stage, stage | {"objective": "self_critical"}],
        "text": [str(tmp_path / "text.tsv")], "examples": 8, "power": 0.3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not main([str(tmp_path / "config.json")])
    captioner = Captioner.load(tmp_path / "run")
    assert captioner.caption([folder / "0.jpg"])[0].caption
    trained = captioner.model.mapper.model[0].weight.detach()
    halved = trained / 2
    trained.zero_()
    average(captioner.model, {str(tmp_path / "run"): 0.5})
    torch.testing.assert_close(trained, halved)
