"""Tags as words: what a classifier is sure to see, read by ClipCap; captions without photos as training examples."""

import json
import random

import pytest
import torch
from PIL import Image

from configs.pocket.tags import WithText, average, choose, main, plural
from helpers.captioner import Captioner
from helpers.clipcap import ClipCap
from helpers.encoders import load_encoder
from helpers.trunks import Encoder, class_words, classifier

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
    assert model.tags(row(dog=0.3, cat=0.6, sheep=0.25)) == [["cat", "dog"]]
    assert model.tags(row(dog=0.19)) == [[]]


def test_tags_stand_behind_the_prefix_as_words(model) -> None:
    features = torch.randn(1, 5, 1280)
    features[:, -1] = row(sheep=0.9)
    prefix = model.prefix(features)
    table = model.language_model.get_input_embeddings().weight
    read = [model.tokenizer.encode("sheep")[0], model.end_id, model.end_id]
    torch.testing.assert_close(prefix[0, -3:], table[read])
    told = features.clone()
    told[:, -1] = row(cow=0.9)
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
    assert {len(tags) for tags, _ in examples.values()} == {1, 2}
    assert (plural("cat"), plural("bus"), plural("pony"), plural("donkey")) == ("cats", "buses", "ponies", "donkeys")


def test_an_example_borrows_a_grid_and_shows_its_own_tags(model) -> None:
    photos = {"a": torch.full((5, 1280), 1.0), "b": torch.full((5, 1280), 2.0)}

    class Photos(dict):
        def __getitem__(self, names):
            return torch.stack([photos[name] for name in names])

    features = WithText(Photos(photos), {"text 0": (["sheep"], ["a sheep"])}, {"text 0": "b"}, train=[])
    out = features[["a", "text 0"]]
    assert out[0].eq(1).all() and out[1, :-1].eq(2).all()
    assert model.tags(out[1:, -1]) == [["sheep"]] and "text 0" in features and "b" in features


def test_a_captioner_with_tags_is_trained_on_photos_and_text_and_captions(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{split}{n}.png" for split, count in (("train", 8), ("dev", 4)) for n in range(count)]
    for number, name in enumerate(names):
        Image.effect_noise((48, 48), 20 + number).save(folder / name)
    rows = [f"{name},A dog runs.,{name[:-5]}" for name in names]
    (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]) + "\n")
    text = tmp_path / "text.tsv"
    lines = [f"{n}\tTwo sheep in a field.\n{n}\tA cow and a sheep." for n in range(4)]
    text.write_text("\n".join(["image\tcaption", *lines]) + "\n")
    stage = {"images_per_batch": 4, "epochs": 1, "validate_images": 2, "samples": 2}
    config = {
        "name": "tagged", "dataset": {"name": "folder", "data_dir": str(folder)}, "encoder": "pocket-clip",
        "features": "tagged", "inference_features": "tagged+mirror", "output": str(tmp_path / "run"),
        "model": {"class": "ClipCap", "regions": 49, "mapper_options": {"hidden": 8}, "tags": 2},
        "stages": [stage, stage | {"objective": "self_critical"}],
        "text": [str(text)], "examples": 8, "power": 0.3,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not main([str(tmp_path / "config.json")])
    captioner = Captioner.load(tmp_path / "run")
    assert captioner.config["encoder"]["kind"] == "tagged+mirror"
    assert captioner.caption([folder / names[0]])[0].caption


def test_weights_are_averaged_by_their_shares(tmp_path) -> None:
    captioner = Captioner.load("cnn-lstm")
    model = captioner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    average(model, {"cnn-lstm": 0.25})
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] / 4)
