"""Photos to features: in order, read ahead by threads, with reasons for the bad ones."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.encoders import THREADS, encode_batches, load_encoder
from helpers.trunks import Encoder


class Brightness(Encoder):
    """The first pixel of a picture."""

    def __init__(self):
        self.name, self.size, self.fingerprint = "brightness", 2, "one"
        self.device = torch.device("cpu")

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        return pixels[:, 0, 0, :1].float()


def photo(value: int, right: int | None = None) -> bytes:
    picture = Image.new("RGB", (2, 2), (value, value, value))
    if right is not None:
        picture.paste((right, right, right), (1, 0, 2, 2))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


BATCHES = [[(10 * b + i, photo(10 * b + i)) for i in range(3)] for b in range(12)]


def test_batches_come_in_order_with_their_features() -> None:
    out = list(encode_batches(Brightness(), BATCHES, "pooled"))
    assert [good for good, _, _ in out] == [[key for key, _ in batch] for batch in BATCHES]
    for (_, values, failed), batch in zip(out, BATCHES, strict=True):
        assert values.flatten().tolist() == [float(key) for key, _ in batch] and not failed


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


def test_no_more_is_read_ahead_than_there_are_threads() -> None:
    asked = 0

    def source() -> Iterator[list]:
        nonlocal asked
        for batch in BATCHES * 10:
            asked += 1
            yield batch

    running = encode_batches(Brightness(), source(), "pooled")
    for number in range(1, 20):
        next(running)
        assert asked <= number + THREADS


def test_an_error_of_the_encoder_reaches_the_caller_and_leaves_nothing_running() -> None:
    class Broken(Brightness):
        def features(self, pixels: Tensor, kind: str) -> Tensor:
            if pixels[0, 0, 0, 0] == 20:
                raise RuntimeError("out of memory")
            return super().features(pixels, kind)

    out = []
    with pytest.raises(RuntimeError, match="out of memory"):
        out.extend(values for _, values, _ in encode_batches(Broken(), BATCHES, "pooled"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_a_real_network_gives_the_features_it_gives_by_itself(samples) -> None:
    encoder = load_encoder("efficientnet-lite0")
    paths = samples[:5]
    out = list(encode_batches(encoder, [[(p, p) for p in paths[:3]], [(p, p) for p in paths[3:]]], "grid"))
    alone = encoder.encode([Image.open(path).convert("RGB") for path in paths])
    assert torch.allclose(torch.cat([values for _, values, _ in out]), alone, atol=1e-3)
