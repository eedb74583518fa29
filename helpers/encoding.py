"""Photos to features at the speed of the network: files are decoded while others are encoded, in the order they came.

On a GPU, threads decode and the calling thread encodes. On a CPU both want the same cores: there each thread takes a
batch from its files to its features, and the network runs on one core a thread. Threads that share each matrix product
would wait for one another whenever one of them has a file to decode (`benchmarks/features.py` prints the ratio).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from helpers.encoders import Encoder
from helpers.errors import CaptioningError
from helpers.images import open_image

THREADS = 4  # that decode for a GPU
MOST_THREADS = 8  # that encode on a CPU: with more, Python itself is what they wait for

Key = TypeVar("Key", bound=Hashable)
Encoded = tuple[list[Key], Tensor | None, dict[Key, str]]


def worker_threads(encoder: Encoder) -> tuple[int, int]:
    """Returns how many threads work for this encoder, and how many cores the network takes in each."""
    if encoder.device.type != "cpu":
        return THREADS, 1
    each = -(-torch.get_num_threads() // MOST_THREADS)
    return torch.get_num_threads() // each, each


def encode_batches(
    encoder: Encoder, batches: Iterable[Sequence[tuple[Key, Path | bytes]]], kind: str, flip: bool = False
) -> Iterator[Encoded]:
    """Yields for each batch of (key, photo), in order: the keys of the photos that could be read, their features
    (float32 [number of them, ...]; None without any), and the reasons of the others by key.

    A photo is a path or the bytes of a file; `flip` encodes its mirror image. Threads plus one batches are in memory.
    """
    on_cpu, cores = encoder.device.type == "cpu", torch.get_num_threads()
    threads, each = worker_threads(encoder)

    def load(photos: Sequence[tuple[Key, Path | bytes]]) -> Encoded:
        good, pixels, failed = [], [], {}
        for key, photo in photos:
            try:
                pixels.append(encoder.prepare(open_image(photo)))
                good.append(key)
            except CaptioningError as error:
                failed[key] = str(error)
        stack = torch.stack(pixels) if pixels else None
        return good, stack.flip(-1) if flip and stack is not None else stack, failed

    def encode(loaded: Encoded) -> Encoded:
        good, pixels, failed = loaded
        return good, None if pixels is None else encoder.features(pixels, kind), failed

    def begin() -> None:
        if on_cpu:  # how many cores PyTorch takes is a setting of each thread
            torch.set_num_threads(each)

    first, second = (lambda photos: encode(load(photos)), lambda done: done) if on_cpu else (load, encode)
    source, waiting = iter(batches), deque[Future]()
    pool = ThreadPoolExecutor(threads, "encode", begin)
    try:
        while True:
            waiting.extend(pool.submit(first, photos) for photos in islice(source, threads + 1 - len(waiting)))
            if not waiting:
                return
            yield second(waiting.popleft().result())
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # also when waiting is cut short
            torch.set_num_threads(cores)  # the libraries underneath keep one number for all threads
