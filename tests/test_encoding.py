"""Photos to features by threads: in order, with reasons for the bad ones, PyTorch's own threads left as they were."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.encoders import MOST_THREADS, THREADS, encode_batches, load_encoder, worker_threads
from helpers.trunks import Encoder


class Brightness(Encoder):
    """The first pixel of a picture; remembers which thread encoded it, and with how many cores."""

    def __init__(self):
        self.name, self.size, self.fingerprint = "brightness", 2, "one"
        self.device, self.seen = torch.device("cpu"), []

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        self.seen.append((threading.current_thread().name, torch.get_num_threads()))
        if pixels[0, 0, 0, 0] == 0:
            time.sleep(0.05)  # the first batch is the slowest
        return pixels[:, 0, 0, :1].float()


def photo(value: int, right: int | None = None) -> bytes:
    picture = Image.new("RGB", (2, 2), (value, value, value))
    if right is not None:
        picture.paste((right, right, right), (1, 0, 2, 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(params=[1, 2, 3, 4 * MOST_THREADS])
def cores(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def on_gpu(encoder: Encoder) -> Encoder:
    encoder.device = SimpleNamespace(type="cuda")
    return encoder


BATCHES = [[(10 * b + i, photo(10 * b + i)) for i in range(3)] for b in range(12)]


@pytest.mark.parametrize("gpu", [False, True])
def test_batches_come_in_order_with_their_features(cores, gpu) -> None:
    encoder = on_gpu(Brightness()) if gpu else Brightness()
    out = list(encode_batches(encoder, BATCHES, "pooled"))
    assert [good for good, _, _ in out] == [[key for key, _ in batch] for batch in BATCHES]
    for (_, values, failed), batch in zip(out, BATCHES, strict=True):
        assert values.flatten().tolist() == [float(key) for key, _ in batch] and not failed
    assert torch.get_num_threads() == cores
    threads = {name for name, _ in encoder.seen}
    if gpu:
        assert threads == {threading.current_thread().name}
    else:
        assert all(name.startswith("encode") for name in threads) and len(threads) <= min(cores, MOST_THREADS)
        assert {count for _, count in encoder.seen} == {max(1, cores // MOST_THREADS)}  # in all not more than before


@pytest.mark.parametrize(
    ("has", "threads", "each"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (12, 6, 2), (15, 7, 2), (16, 8, 2), (64, 8, 8)]
)
def test_nearly_every_core_is_used_and_none_twice(monkeypatch, has, threads, each) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: has)
    assert worker_threads(Brightness()) == (threads, each)


def test_a_bad_photo_costs_no_other_its_features() -> None:
    batches = [[("a", photo(1)), ("b", b"no photo"), ("c", photo(3))], [("d", b"")], [("e", photo(5))]]
    first, second, third = encode_batches(Brightness(), batches, "pooled")
    assert first[0] == ["a", "c"] and first[1].tolist() == [[1.0], [3.0]]
    assert list(first[2]) == ["b"] and "not an image" in first[2]["b"]
    assert second[0] == [] and second[1] is None and "empty" in second[2]["d"]
    assert third == (["e"], third[1], {}) and third[1].tolist() == [[5.0]]


def test_flip_encodes_the_mirror_image() -> None:
    plain, mirrored = (next(encode_batches(Brightness(), [[(0, photo(1, 9))]], "pooled", flip))
                       for flip in (False, True))  # fmt: skip
    assert plain[1].tolist() == [[1.0]] and mirrored[1].tolist() == [[9.0]]


@pytest.mark.parametrize("gpu", [False, True])
def test_no_more_is_read_ahead_than_threads_plus_one(cores, gpu) -> None:
    asked = 0

    def source() -> Iterator[list]:
        nonlocal asked
        for batch in BATCHES * 10:
            asked += 1
            yield batch

    threads = THREADS if gpu else min(cores, MOST_THREADS)
    encoder = on_gpu(Brightness()) if gpu else Brightness()
    running = encode_batches(encoder, source(), "pooled")
    for number in range(1, 20):
        next(running)
        assert asked <= number + threads
    running.close()
    assert torch.get_num_threads() == cores


def test_an_error_of_the_encoder_reaches_the_caller_and_leaves_nothing_running(cores) -> None:
    class Broken(Brightness):
        def features(self, pixels: Tensor, kind: str) -> Tensor:
            if pixels[0, 0, 0, 0] == 20:
                raise RuntimeError("out of memory")
            return super().features(pixels, kind)

    out = []
    with pytest.raises(RuntimeError, match="out of memory"):
        out.extend(values for _, values, _ in encode_batches(Broken(), BATCHES, "pooled"))
    assert torch.get_num_threads() == cores
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_real_network_gives_the_features_it_gives_by_itself(samples) -> None:
    encoder = load_encoder("efficientnet-lite0")
    paths = samples[:5]
    out = list(encode_batches(encoder, [[(p, p) for p in paths[:3]], [(p, p) for p in paths[3:]]], "grid"))
    alone = encoder.encode([Image.open(path).convert("RGB") for path in paths])
    assert torch.allclose(torch.cat([values for _, values, _ in out]), alone, atol=1e-3)
