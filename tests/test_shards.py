"""Tar shards: listed, streamed once through the encoder, and refused when they are not what they should be."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.cluster.shards import main, members, read_shards, shard_features
from helpers.datasets import load_dataset
from helpers.encoders import cache_features
from helpers.files import CaptioningError
from tests.test_features import Tiny


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def write(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def photos() -> dict[str, bytes]:
    names = [f"{n}.png" for n in range(22)] + ["a.b.png", "deep/c é.png", "UPPER.PNG"]
    return {name: picture(number) for number, name in enumerate(names)}


@pytest.fixture
def sharded(photos, tmp_path: Path, monkeypatch) -> Path:
    """25 photos, some with odd names, in three shards with a table in front."""
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        some = list(photos.items())[10 * number : 10 * number + 10]
        write(folder / f"{number:06d}.tar", dict(some))
    split = lambda n: ("train", "dev", "test")[0 if n < 17 else 1 if n < 21 else 2]  # noqa: E731
    rows = [f'{name},"A dog, number {n}.",{split(n)}' for n, name in enumerate(photos)]
    (folder / "captions.csv").write_text("image,caption,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_members_and_table(photos, sharded) -> None:
    assert dict(member for shard in read_shards(sharded).shards for member in members(shard)) == photos
    dataset = read_shards(sharded)
    assert dataset.references()["3.png"] == ["A dog, number 3."] and len(dataset.images("dev")) == 4


def test_streamed_features_are_those_of_the_files(photos, sharded, tmp_path) -> None:
    (tmp_path / "files" / "images" / "deep").mkdir(parents=True)
    for name, data in photos.items():
        (tmp_path / "files" / "images" / name).write_bytes(data)
    (tmp_path / "files" / "captions.csv").write_bytes((sharded / "captions.csv").read_bytes())
    files = load_dataset("folder", tmp_path / "files")
    encoder = Tiny()
    for flip in (False, True):
        streamed = shard_features(encoder, read_shards(sharded), batch_size=4, flip=flip)
        expected = cache_features(Tiny(), files, flip=flip)
        assert set(streamed.names) == set(expected.names)
        assert torch.equal(streamed[expected.names], expected[expected.names])
    encoded = encoder.encoded
    assert shard_features(encoder, read_shards(sharded))["7.png"].shape == (4, 3) and encoder.encoded == encoded


def test_a_killed_run_goes_on_at_the_next_shard(sharded) -> None:
    class Stops(Tiny):
        def grid(self, pixels):
            if self.encoded >= 20:
                raise KeyboardInterrupt
            return super().grid(pixels)

    with pytest.raises(KeyboardInterrupt):
        shard_features(Stops(), read_shards(sharded), batch_size=10)
    encoder = Tiny()
    assert len(shard_features(encoder, read_shards(sharded))) == 25 and encoder.encoded == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_share_the_shards(sharded, monkeypatch) -> None:
    dataset, counts = read_shards(sharded), []
    child = os.fork()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1" if child == 0 else "0")
    encoder = Tiny()
    counts.append((len(shard_features(encoder, dataset)), encoder.encoded))
    if child == 0:
        os._exit(0 if counts == [(25, 10)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and counts == [(25, 15)]


def test_one_command_trains_on_shards(sharded, tmp_path) -> None:
    config = {
        "name": "sharded", "dataset": {"data_dir": str(sharded)}, "encoder": "efficientnet-lite0",
        "features": "pooled", "vocabulary": {"min_count": 1}, "output": str(tmp_path / "run"),
        "model": {"class": "ShowAndTell", "embedding": 8, "hidden": 8},
        "stages": [{"epochs": 1, "decoding": {"method": "greedy", "max_length": 6}}],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(str(tmp_path / "config.json")) in (0, None)
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("line", ["pipe:touch", "https://a/$(id).tar"])
def test_an_address_that_a_shell_would_run_is_refused(sharded, line: str) -> None:
    (sharded / "shards.txt").write_text(f"000000.tar\n{line}\n")
    with pytest.raises(CaptioningError, match="neither a file nor a plain http"):
        read_shards(sharded)
