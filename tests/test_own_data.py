"""Fine-tuning a shipped checkpoint on a folder of photos: both kinds of model, new words, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.captioner import Captioner, load_checkpoint
from helpers.cnn_lstm import grow_vocabulary
from helpers.files import CaptioningError, read_json
from helpers.training import check, fine_tuning, main, train

WORDS = {"red": "a crimson xylograph panel", "green": "a verdant xylograph panel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of two kinds, two captions each, with a split column."""
    folder = tmp_path_factory.mktemp("own")
    rows = ["image,caption,split"]
    for number in range(10):
        colour = ("red", "green")[number % 2]
        Image.new("RGB", (40, 30), colour).save(folder / f"{number}.jpg")
        split = "dev" if number in (6, 7) else "test" if number in (8, 9) else "train"
        rows += [f"{number}.jpg,{WORDS[colour]},{split}", f"{number}.jpg,{WORDS[colour]} again,{split}"]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", ["cnn-lstm", "clipcap-mlp"])
def test_a_shipped_checkpoint_learns_a_folder(name: str, folder: Path, tmp_path: Path, cache: None) -> None:
    output = tmp_path / "mine"
    config = fine_tuning(
        name, {"name": "folder", "data_dir": str(folder)}, output, epochs=4, images_per_batch=6, learning_rate=2e-3,
        warmup_steps=1,
    )  # fmt: skip
    config = json.loads(json.dumps(config))  # as the command line reads it
    before, old = load_checkpoint(name)
    run = train(config, progress=False)
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]
    assert Image.open(output / "history.png").width > 500
    tuned = Captioner.load(output)
    assert tuned.name == "mine" and tuned.feature_kind == old["encoder"]["kind"]
    assert tuned.decoding["beam_size"] == old["decoding"].get("beam_size", 5)
    assert "xylograph" in tuned.model.tokenizer.decode(tuned.model.tokenizer.encode(WORDS["red"]))
    captions = tuned.caption([folder / "8.jpg", folder / "9.jpg"])
    assert all(caption.error is None and caption.caption for caption in captions)
    same = {key: value for key, value in before.state_dict().items() if key in tuned.model.state_dict()}
    moved = [k for k, v in same.items() if v.shape == (now := tuned.model.state_dict()[k]).shape and not v.equal(now)]
    assert moved and torch.equal(before.standardise.mean, tuned.model.standardise.mean)  # features scaled as they were
    assert read_json(output / "training.json")["start_from"] == name


def test_new_words_join_the_vocabulary_and_old_ones_stay() -> None:
    model, _ = load_checkpoint("cnn-lstm")
    size, dog = len(model.tokenizer), model.tokenizer.index["dog"]
    embed, output, bias = model.embed.weight.clone(), model.output.weight.clone(), model.output.bias.clone()
    said = ["a zebu dog", "a zebu", "a quagga dog"]
    assert grow_vocabulary(model, said, min_count=2) == ["zebu"]
    assert model.tokenizer.index["dog"] == dog and model.tokenizer.index["zebu"] == size
    assert model.embed.weight.shape[0] == model.output.out_features == model.config["vocabulary_size"] == size + 1
    assert torch.equal(model.embed.weight[:size], embed) and torch.equal(model.output.weight[:size], output)
    assert torch.equal(model.output.bias[:size], bias)
    assert model.output.bias[size].item() == pytest.approx(bias[4:].mean().item())
    assert 0 < model.embed.weight[size].std() < 3 * embed.std()
    assert grow_vocabulary(model, said, min_count=2) == []  # nothing is learned twice


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    config = fine_tuning("cnn-lstm", {"name": "folder", "data_dir": "photos"}, "out")
    check(config)
    for change in ({"encoder": "resnet50"}, {"features": "embedding"}):
        with pytest.raises(CaptioningError, match=f"asks for .*'{next(iter(change.values()))}'"):
            check(config | change)


def test_the_command_wants_a_configuration_or_all_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments in ([], ["config.json", "--output", "out"], ["--start_from", "cnn-lstm"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--start_from, --data_dir and --output together" in capsys.readouterr().err
    options = ["--start_from", "clipcap-mlp", "--data_dir", str(tmp_path / "none"), "--output", str(tmp_path / "mine")]
    assert main(options) == 2 and "no folder" in capsys.readouterr().err
