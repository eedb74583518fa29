"""The configurations for CLIP and GPT-2, run with small models of the same classes, saved and loaded the same way."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from helpers.captioner import Captioner
from helpers.files import ROOT, read_json, write_json
from helpers.training import check, main, stage_settings
from tests.tiny_clips import save_clip
from tests.toy_language_models import save_family

CONFIGS = sorted((ROOT / "configs").glob("clipcap-*.json"))
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("disc", "square", "bar", "frame", "cross", "line")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a dataset, a CLIP file and a language model."""
    place = tmp_path_factory.mktemp("full")
    (place / "photos").mkdir()
    lines = ["image,caption,split"]
    for number, (colour, shape) in enumerate(product(COLOURS, SHAPES)):
        name = f"{colour}-{shape}.png"
        Image.new("RGB", (64, 64), colour).save(place / "photos" / name)
        split = "dev" if number % 2 else "train"
        lines += [f"{name},{text},{split}" for text in (f"A {colour} {shape}.", f"The {shape} is {colour}.")]
    (place / "photos" / "captions.csv").write_text("\n".join(lines))
    save_clip("clip", place / "clip")
    save_family(place / "gpt2")
    return place


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_names_what_exists(path: Path) -> None:
    config = read_json(path)
    check(config)
    assert all(stage_settings(stage) for stage in config["stages"])
    assert config["name"] == path.stem and config["encoder"] == "clip:ViT-B/32"
    assert config["model"]["language_model"] == "gpt2" and config["dataset"]["name"] == "flickr8k"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_same_lines_train_small_models_of_the_same_classes(path: Path, place: Path, tmp_path: Path, capsys) -> None:
    config = read_json(path)
    config |= {
        "dataset": {"name": "folder", "data_dir": str(place / "photos")},
        "encoder": f"clip:{place / 'clip'}",
        "output": str(tmp_path / "run"),
        "mixed_precision": "no",
    }
    config["model"]["language_model"] = str(place / "gpt2")
    config["stages"][0] |= {"epochs": 2, "warmup_steps": 1, "learning_rate": 1e-3}
    config["stages"][0]["decoding"]["max_length"] = 5
    write_json(tmp_path / "config.json", config)
    assert main([str(tmp_path / "config.json"), "--quiet"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and '"CIDEr"' in rows[-1]
    captioner = Captioner.load(tmp_path / "run")
    assert captioner.feature_kind == "pooled" and captioner.model.config["tune"] == config["model"]["tune"]
    captions = captioner.caption([place / "photos" / "red-disc.png", tmp_path / "missing.png"], max_length=5)
    assert captions[0].error is None and captions[0].model == config["name"]
    assert "missing.png" in captions[1].error
