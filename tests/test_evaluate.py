"""The evaluation command on a toy captioner: what is scored is what the model says, and the numbers can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import captioner as front_door
from helpers import evaluate, metrics
from helpers.captioner import Captioner
from helpers.datasets import load_dataset
from helpers.decoding import decode
from helpers.files import CaptioningError
from helpers.metrics import read_hypotheses
from helpers.trunks import Encoder
from tests.toy_captioners import MEANINGS, features, small_model, world

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
    names = ["model", "dataset", "split", "images", *metrics.BLEU, "ROUGE-L", "CIDEr", "captions_per_second"]
    assert list(result) == names
    assert [result[name] for name in names[:4]] == ["toy", "flickr8k", "dev", 27]
    assert result["captions_per_second"] > 0
    wanted = metrics.evaluate(DEV, read_hypotheses(saved), ("BLEU", "ROUGE-L", "CIDEr"))
    assert {name: result[name] for name in wanted} == wanted
    settings = json.loads(err.split("settings: ")[1].splitlines()[0])
    assert settings["decoding"] == {"method": "beam", "beam_size": 3, "max_length": 8}
    assert settings["seed"] == 0 and settings["split"] == "dev" and "PTB" in settings["tokeniser"]
    assert settings["versions"]["torch"] and settings["versions"]["nltk"]


def test_a_hypotheses_file_needs_no_model(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door.Captioner, "load", None)
    file = folder / "people.tsv"
    file.write_text("".join(f"{image}\t{captions[1]}\n" for image, captions in DEV.items()))
    result, _ = run(folder, capsys, "--hypotheses", str(file))
    assert result["model"] == "people" and result["images"] == 27 and result["captions_per_second"] is None
    assert result["BLEU-4"] == pytest.approx(1.0, abs=1e-6)
    file.write_text("d0.jpg\ta dog\n")
    _, err = run(folder, capsys, "--hypotheses", str(file), status=2)
    assert "26 images with references have no caption" in err


def test_sampling_is_repeatable(folder: Path, captioner: Captioner, capsys) -> None:
    def captions(*more: str) -> dict[str, str]:
        run(folder, capsys, "--temperature", "1.5", "--predictions", str(folder / "p.tsv"), *more)
        return read_hypotheses(folder / "p.tsv")

    first = captions("--seed", "1")
    assert captions("--seed", "1") == first != captions("--seed", "2")


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_scored(
    folder: Path, captioner: Captioner, capsys
) -> None:
    (folder / "Images" / "d3.jpg").write_bytes(b"not a picture")
    result, err = run(folder, capsys, status=1)
    assert result["images"] == 26 and result["BLEU-1"] >= 0
    assert "d3.jpg" in err and "1 of 27 images could not be read" in err


def test_intervals_diversity_baselines_and_a_table(folder: Path, captioner: Captioner, capsys) -> None:
    file = folder / "table.csv"
    more = ["--intervals", "--diversity", "--baselines", "--table", str(file)]
    result, _ = run(folder, capsys, *more)
    low, high = result["intervals"]["BLEU-1"]
    assert low <= result["BLEU-1"] <= high
    assert 0 <= result["diversity"]["unseen"] <= 1
    rows = result["baselines"]
    assert list(rows) == ["most frequent caption", "nearest neighbour's caption", "one person against the others"]
    # the pictures of train and dev are the same, so the neighbour's caption is right
    assert rows["nearest neighbour's caption"]["BLEU-1"] == pytest.approx(1.0, abs=1e-6)
    assert (
        file.read_text().startswith("model,BLEU-1,BLEU-1 low,BLEU-1 high") and len(file.read_text().splitlines()) == 5
    )


def test_two_models_are_compared_and_shown(folder: Path, captioner: Captioner, capsys) -> None:
    people, page, table = folder / "people.tsv", folder / "errors.html", folder / "table.md"
    people.write_text("".join(f"{image}\t{captions[1]}\n" for image, captions in DEV.items()))
    more = ["--against", str(people), "--page", str(page), "--table", str(table)]
    result, _ = run(folder, capsys, *more)
    test = result["against"]
    assert test.pop("model") == "people" and set(test) == {*metrics.BLEU, "ROUGE-L", "CIDEr"}
    # an untrained model against people: worse, and not by chance
    assert test["CIDEr"]["difference"] < 0 and test["CIDEr"]["high"] < 0 and test["CIDEr"]["p"] < 0.01
    people_score = metrics.evaluate(DEV, {image: captions[1] for image, captions in DEV.items()}, ["CIDEr"])["CIDEr"]
    assert test["CIDEr"]["difference"] == pytest.approx(result["CIDEr"] - people_score)
    text = page.read_text()
    assert all(f"<h2>{group}</h2>" in text for group in ("Best", "Worst", "Most different"))
    assert table.read_text().splitlines()[2].startswith("| toy |") and "| people |" in table.read_text()
    arguments = ["--dataset", "flickr8k", "--data_dir", str(folder), "--metrics", "CIDEr", "--against", str(people)]
    assert evaluate.main(arguments) == 0  # the same for people
    assert "CIDEr: toy less people -" in capsys.readouterr().out


def test_clipscore_by_any_clip(folder: Path, captioner: Captioner, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    class ToyClip(ToyEncoder):
        """Looks at the number alone: even pictures go with captions of an even number of letters."""

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            even = (pixels.float().mean((1, 2, 3)) / 9).round() % 2
            return torch.stack([even, 1 - even], 1)

        def encode_text(self, captions: list[str]) -> torch.Tensor:
            even = torch.tensor([float(len(caption) % 2) for caption in captions])
            return torch.stack([even, 1 - even], 1)

    encoders = {"toy": ToyEncoder(), "clip": ToyClip()}
    monkeypatch.setattr("helpers.encoders.load_encoder", lambda name, *_, **__: encoders[name])
    file = folder / "said.tsv"
    said = {image: captions[0] for image, captions in DEV.items()}
    file.write_text("".join(f"{image}\t{caption}\n" for image, caption in said.items()))
    result, _ = run(folder, capsys, "--hypotheses", str(file), "--clipscore", "clip")
    fits = [number % 2 == (len("A photo depicts " + caption)) % 2 for number, caption in enumerate(said.values())]
    assert result["CLIPScore"] == pytest.approx(2.5 * np.mean(fits), abs=1e-3)
    assert 0 <= result["RefCLIPScore"] <= 2.5
    _, err = run(folder, capsys, "--hypotheses", str(file), "--clipscore", "toy", status=2)
    assert "no text side" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "test"], "test"),
        (["--against", "absent.tsv"], "Cannot read absent.tsv"),
        (["--split", "dve"], "Did you mean 'dev'"),
        (["--metrics", "BLUE"], "Did you mean 'BLEU"),
        (["--hypotheses", "absent.tsv"], "Cannot read absent.tsv"),
        (["--table", "scores.xls"], "Known: .csv, .json, .md"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--prompt", "xylophone"], "does not know"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_reason(folder: Path, captioner, capsys, more, message) -> None:
    _, err = run(folder, capsys, *more, status=2)
    assert message in err and "Traceback" not in err


def test_the_settings_name_only_what_was_used(folder: Path, captioner, capsys) -> None:
    for more, decoding in ((["--beam_size", "1"], {"method": "greedy"}), (["--beam_size", "2"], {"beam_size": 2})):
        _, err = run(folder, capsys, *more)
        said = json.loads(err.split("settings: ")[1].splitlines()[0])["decoding"]
        assert {name: said.get(name) for name in decoding} == decoding
        assert ("beam_size" in said) == ("beam_size" in decoding)


def test_an_empty_split_is_named(captioner: Captioner) -> None:
    class Empty:
        name = "empty"

        def images(self, split: str) -> list[str]:
            return []

        def splits(self) -> list[str]:
            return ["train"]

    with pytest.raises(CaptioningError, match="no images in the split 'dev'"):
        evaluate.predict(captioner, Empty(), "dev")


def test_the_readable_images_give_the_pooled_vectors(folder: Path) -> None:
    names, vectors = evaluate.pooled_features(ToyEncoder(), load_dataset("flickr8k", folder), "dev")
    assert names == list(DEV) and vectors.shape == (len(MEANINGS), 9) and vectors.dtype == np.float32
    assert np.allclose(vectors, features("d").array.mean(1), atol=1e-3)
