"""The evaluation command on a toy captioner: what is scored is what the model says, and the numbers can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import captioner as front_door
from helpers import evaluate, metrics
from helpers.captioner import Captioner
from helpers.datasets import load_dataset
from helpers.decoding import decode
from helpers.metrics import read_hypotheses
from helpers.trunks import Encoder
from tests.toy_captioners import features, small_model, world

DEV, TRAIN = world("d"), world("t")


class ToyEncoder(Encoder):
    """Reads which toy meaning a grey picture stands for: its brightness is 9 times the number."""

    name, size, width, regions, fingerprint = "toy", 8, 9, 4, "0"
    device = torch.device("cpu")

    def grid(self, pixels: torch.Tensor) -> torch.Tensor:
        numbers = (pixels.float().mean((1, 2, 3)) / 9).round().long()
        return torch.from_numpy(features("d").array)[numbers]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset folder in Flickr8k's layout with the splits train and dev, and no test."""
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "Images").mkdir()
    lines = ["image,caption"]
    for split, references in (("train", TRAIN), ("dev", DEV)):
        for number, (image, captions) in enumerate(references.items()):
            Image.new("L", (8, 8), 9 * number).save(tmp_path / "Images" / image, quality=100)
            lines += [f'{image},"{caption}"' for caption in captions]
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(references) + "\n")
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def captioner(monkeypatch: pytest.MonkeyPatch) -> Captioner:
    config = {"name": "toy", "encoder": {"kind": "grid"}, "decoding": {"beam_size": 3, "max_length": 8}}
    captioner = Captioner(small_model(), ToyEncoder(), config)
    monkeypatch.setattr(front_door.Captioner, "load", classmethod(lambda cls, name=None, device="cpu": captioner))
    return captioner


def run(folder: Path, capsys: pytest.CaptureFixture, *more: str, status: int = 0) -> tuple[dict, str]:
    arguments = ["--dataset", "flickr8k", "--data_dir", str(folder), "--metrics", "BLEU", "ROUGE-L", "CIDEr", "--json"]
    assert evaluate.main([*arguments, *more]) == status
    out = capsys.readouterr()
    return json.loads(out.out) if status < 2 else {}, out.err


def test_the_predictions_are_the_models_captions(folder: Path, captioner: Captioner) -> None:
    dataset = load_dataset("flickr8k", folder)
    captions = evaluate.predict(captioner, dataset, "dev", batch_size=5)
    assert list(captions) == list(DEV) and captions.failed == {} and captions.seconds > 0
    values = torch.from_numpy(features("d").array).half().float()  # the cache keeps fp16
    for number, image in enumerate(DEV):
        (group,) = decode(captioner.model, values[number : number + 1], "beam", beam_size=3, max_length=8)
        assert captions[image] == captioner.model.tokenizer.decode(group[0].tokens)
    greedy = evaluate.predict(captioner, dataset, "dev", method="greedy", max_length=2)
    assert max(len(caption.split()) for caption in greedy.values()) <= 2


def test_the_command_prints_what_design_asks_for(folder: Path, captioner: Captioner, capsys) -> None:
    saved = folder / "out" / "dev.tsv"
    result, err = run(folder, capsys, "--model", "toy", "--split", "dev", "--predictions", str(saved))
    assert "settings: split dev, seed 0" in err and '"beam_size": 3, "max_length": 8' in err
    names = ["model", "dataset", "split", "images", *metrics.BLEU, "ROUGE-L", "CIDEr", "captions_per_second"]
    assert list(result) == names
    assert [result[name] for name in names[:4]] == ["toy", "flickr8k", "dev", 27]
    assert result["captions_per_second"] > 0
    wanted = metrics.evaluate(DEV, read_hypotheses(saved), ("BLEU", "ROUGE-L", "CIDEr"))
    assert {name: result[name] for name in wanted} == wanted


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_scored(
    folder: Path, captioner: Captioner, capsys
) -> None:
    (folder / "Images" / "d3.jpg").write_bytes(b"not a picture")
    result, err = run(folder, capsys, status=1)
    assert result["images"] == 26 and result["BLEU-1"] >= 0
    assert "d3.jpg" in err and "1 of 27 images could not be read" in err


def test_intervals_diversity_objects_and_baselines(folder: Path, captioner: Captioner, capsys) -> None:
    more = ["--intervals", "--diversity", "--objects", "--baselines"]
    result, _ = run(folder, capsys, *more)
    low, high = result["intervals"]["BLEU-1"]
    assert low <= result["BLEU-1"] <= high
    assert 0 <= result["diversity"]["unseen"] <= 1 and result["diversity"]["vocabulary"] >= 1
    assert result["objects"]["things"] == 27 and 0 <= result["objects"]["recall"] <= 1  # a dog, a cat or a bird each
    rows = result["baselines"]
    assert list(rows) == ["most frequent caption", "nearest neighbour's caption", "one person against the others"]
    # the pictures of train and dev are the same, so the neighbour's caption is right
    assert rows["nearest neighbour's caption"]["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    arguments = ["--dataset", "flickr8k", "--data_dir", str(folder), "--metrics", "CIDEr", *more]
    assert evaluate.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"{result['CIDEr']:.3f} [" in shown and "one person against the others" in shown and "distinct-2" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "test"], "test"),
        (["--split", "dve"], "Did you mean 'dev'"),
        (["--metrics", "BLUE"], "Did you mean 'BLEU"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--decoding", '{"prompt": "xylophone"}'], "does not know"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_reason(folder: Path, captioner, capsys, more, message) -> None:
    _, err = run(folder, capsys, *more, status=2)
    assert message in err and "Traceback" not in err
