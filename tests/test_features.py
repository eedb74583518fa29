"""The feature cache: right, once, and whole, whatever kills it, runs beside it, or lies among the photos."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from helpers.encoders import THREADS, cache_features
from helpers.files import CaptioningError, read_json
from helpers.trunks import Encoder


class Tiny(Encoder):
    """Four squares of a 16-pixel picture, their mean colours; counts what it encodes."""

    chunk = 32  # whole batches at once, so that the log tells of batches

    def __init__(self, fingerprint: str = "one", log: Path | None = None, pause: float = 0.0):
        self.name, self.size, self.width, self.regions = "tiny", 16, 3, 4
        self.fingerprint, self.log, self.pause = fingerprint, log, pause
        self.device, self.encoded, self.lock = torch.device("cpu"), 0, threading.Lock()

    def grid(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        time.sleep(self.pause)
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{len(pixels)}\n")
        # NumPy, since a forked process must not use PyTorch's threads
        squares = pixels.numpy().reshape(-1, 3, 2, 8, 2, 8).mean((3, 5), dtype=np.float32)
        return torch.from_numpy(squares.reshape(-1, 3, 4)).transpose(1, 2)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def photos(tmp_path) -> dict[str, Path]:
    """Forty small pictures of noise, by name."""
    (tmp_path / "photos").mkdir()
    chance = np.random.default_rng(0)
    paths = {f"photo {i}.png": tmp_path / "photos" / f"photo {i}.png" for i in range(40)}
    for path in paths.values():
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))


def expected(path: Path) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
    return torch.nn.functional.avg_pool2d(pixels.float(), 8).flatten(2).transpose(1, 2)[0]


def assert_right(features, photos: dict[str, Path]) -> None:
    assert features.names == list(photos)
    for name, path in photos.items():
        assert torch.allclose(features[name], expected(path), atol=0.1)  # fp16


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_every_image_gets_its_own_features_once(photos, batch_size) -> None:
    encoder = Tiny()
    features = cache_features(encoder, photos, batch_size=batch_size)
    assert_right(features, photos)
    assert encoder.encoded == 40
    names = random.Random(0).choices(list(photos), k=60)
    rows = features[names]
    assert rows.shape == (60, 4, 3) and rows.dtype == torch.float32
    assert torch.equal(rows[7], features[names[7]])
    assert isinstance(features.array, np.memmap)
    cache_features(encoder, photos)
    assert encoder.encoded == 40  # the second time from the cache


def test_mirrored_features_are_those_of_the_mirror_image(photos) -> None:
    plain, mirrored = cache_features(Tiny(), photos), cache_features(Tiny(), photos, flip=True)
    assert torch.allclose(plain["photo 0.png"][[1, 0, 3, 2]], mirrored["photo 0.png"], atol=0.1)


def test_other_weights_images_order_or_kind_make_another_cache(photos) -> None:
    cache_features(Tiny(), photos)
    changed = dict(photos)
    for encoder, paths, kind in (
        (Tiny("two"), photos, "grid"),  # other weights
        (Tiny("two"), dict(list(photos.items())[:30]), "pooled"),
        (Tiny(), dict(reversed(photos.items())), "grid"),
        (Tiny(), dict(list(photos.items())[:20]), "grid"),
    ):
        features = cache_features(encoder, paths, kind)
        assert encoder.encoded == len(paths) and features.names == list(paths)
    Image.new("RGB", (16, 16), "red").save(photos["photo 3.png"])
    encoder = Tiny()
    assert_right(cache_features(encoder, changed), photos)
    assert encoder.encoded == 40


def test_bad_photos_are_left_out_and_named(photos) -> None:
    names = list(photos)
    photos[names[0]].write_bytes(b"")
    photos[names[9]].write_bytes(b"no picture")
    photos[names[39]].unlink()
    for _ in range(2):  # made, then read
        features = cache_features(Tiny(), photos)
        assert set(features.failed) == {names[0], names[9], names[39]}
        assert "empty" in features.failed[names[0]]
        good = {name: path for name, path in photos.items() if name not in features.failed}
        assert_right(features, good)
        assert len(features) == 37 and names[9] not in features and names[8] in features
        with pytest.raises(CaptioningError, match="no file|empty"):
            features[names[39]]
        with pytest.raises(CaptioningError, match="was not encoded"):
            features[["another photo"]]
        assert isinstance(features.array, np.memmap)  # on disk, although some are left out


def test_a_whole_batch_of_bad_photos_is_no_obstacle(photos) -> None:
    for name in list(photos)[:12]:
        photos[name].write_bytes(b"no picture")
    assert_right(cache_features(Tiny(), photos, batch_size=5), dict(list(photos.items())[12:]))


def test_no_photo_at_all_is_an_error_with_reasons(photos, tmp_path) -> None:
    for path in photos.values():
        path.write_bytes(b"no picture")
    with pytest.raises(CaptioningError, match="None of the 40 images could be read: .*photo 0.png"):
        cache_features(Tiny(), photos)
    with pytest.raises(CaptioningError, match="no images"):
        cache_features(Tiny(), {})


def test_a_lost_or_cut_array_is_noticed(photos, tmp_path) -> None:
    cache_features(Tiny(), photos)
    (array,) = (tmp_path / "cache").rglob("features.npy")
    array.unlink()
    encoder = Tiny()
    assert_right(cache_features(encoder, photos), photos)
    assert encoder.encoded == 40
    array.write_bytes(array.read_bytes()[:200])
    with pytest.raises(CaptioningError, match="Delete that folder"):
        cache_features(Tiny(), photos)


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own and returns its id. Exit status 0; 3 for a CaptioningError; else 1."""
    child = os.fork()
    if child:
        return child
    # tqdm's lock is shared with forks; a child that is killed while it holds it would stop this process for good
    tqdm.set_lock(threading.RLock())
    try:
        work()
        os._exit(0)
    except CaptioningError as error:
        os._exit(3 if "Cannot write" in str(error) else 1)
    except BaseException:
        os._exit(1)


def encoded(log: Path) -> int:
    return sum(map(int, log.read_text().split())) if log.exists() else 0


@needs_fork
@pytest.mark.parametrize("images", [3, 13, 22, 37])
def test_a_killed_run_goes_on_after_the_last_batch(photos, tmp_path, images) -> None:
    log = tmp_path / "log"
    child = fork(lambda: cache_features(Tiny(log=log, pause=0.02), photos, batch_size=4))
    while encoded(log) < images:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = [read_json(path)["rows"] for path in (tmp_path / "cache").rglob("rows.json")] or [0]
    encoder = Tiny()
    assert_right(cache_features(encoder, photos), photos)
    assert encoder.encoded == 40 - done[0]  # nothing that was marked as done is done again


@needs_fork
def test_two_processes_make_one_cache(photos, tmp_path) -> None:
    log = tmp_path / "log"
    both = [fork(lambda: cache_features(Tiny(log=log, pause=0.02), photos)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in both] == [0, 0]
    assert encoded(log) == 40  # together they encoded every image once
    encoder = Tiny()
    assert_right(cache_features(encoder, photos), photos)
    assert encoder.encoded == 0


def test_memory_does_not_grow_with_the_images(photos) -> None:
    """At no time are more decoded pictures held than one batch for each thread that reads, and the one in work."""
    held, most = 0, 0

    class Counting(Tiny):
        def prepare(self, image):
            nonlocal held, most
            with self.lock:
                held += 1
                most = max(most, held)
            return super().prepare(image)

        def grid(self, pixels):
            nonlocal held
            with self.lock:
                held -= len(pixels)
            return super().grid(pixels)

    cache_features(Counting(), photos, batch_size=4)
    assert 4 <= most <= 4 * (THREADS + 1)
