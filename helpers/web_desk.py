"""What the page and the service share: captioners loaded once, photos opened in bounded memory, captions in batches.

Photos come from strangers and at any time. Two threads open them, one more captions: what waits while it is busy, and
asks for the same, is captioned together when it is free.
"""

from __future__ import annotations

import atexit
import io
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.captioner import Caption, Captioner, available, checkpoint_folder
from helpers.files import CaptioningError, read_json, unknown_name
from helpers.images import open_image, shown
from helpers.web_limits import LIMITS, Limits

DECODING = {"method": "beam", "beam_size": 5}  # of a checkpoint that says nothing
THUMB = 640  # pixels of the longer side of the copy that a page shows


class Busy(CaptioningError):
    """Too many photos are waiting already; the same request may well succeed a little later."""


@dataclass(frozen=True)
class Photo:
    """An opened photo: as large as the encoder wants it, and if asked for, a copy to be shown."""

    name: str
    square: Image.Image = field(repr=False)
    thumb: bytes | None = field(default=None, repr=False)  # a JPEG: a page holds one for each photo of each visitor


@dataclass
class Job:
    """Photos that wait for their captions."""

    model: str
    options: Mapping[str, Any]
    photos: Sequence[Photo]
    future: Future = field(default_factory=Future)


class Upload(io.BytesIO):
    """The bytes of a file with the name that its sender gave it."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = shown(name) or "the photo"


class Desk:
    """Takes photos from any thread and gives back captions.

    checkpoints: folders of captioners of one's own, before the shipped ones; the first is the default. batch: photos
    encoded together. gather: seconds to wait for others that arrive at nearly the same time.
    Raises CaptioningError when a folder is no checkpoint, or there is no captioner at all.
    """

    def __init__(
        self,
        checkpoints: Sequence[str | Path] = (),
        device: str = "cpu",
        batch: int = 16,
        gather: float = 0.003,
        limits: Limits = LIMITS,
    ):
        self.device, self.batch, self.gather, self.limits = device, batch, gather, limits
        self._places: dict[str, str | Path] = {}
        for place in checkpoints:
            folder = checkpoint_folder(place).resolve()
            self._places[folder.name if folder.name not in self._places else str(folder)] = folder
        for name in available():
            self._places.setdefault(name, name)
        if not self._places:
            raise CaptioningError("There is no captioner in data/checkpoints/. Train one, or name its folder.")
        self.names = list(self._places)
        self.default = self.names[0]
        self.batches = self.captions = 0  # so far
        self._loaded: dict[str, Captioner] = {}
        self._locks = {name: threading.Lock() for name in self.names}
        self._openers = ThreadPoolExecutor(2, "open")  # a photo may need 400 MB while it is opened
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="caption", daemon=True)
        self._worker.start()
        atexit.register(self.close)  # a thread that is still computing when the interpreter goes would crash it

    @property
    def alive(self) -> bool:
        """Whether captions are still being made."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Returns how many photos wait for the captioner."""
        with self._changed:
            return sum(len(job.photos) for job in self._jobs)

    def captioner(self, name: str | None = None) -> Captioner:
        """Returns the captioner `name` (the default one without), loaded at most once. Raises CaptioningError."""
        name = self.known(name)
        with self._locks[name]:
            if name not in self._loaded:
                try:
                    self._loaded[name] = Captioner.load(self._places[name], device=self.device)
                except CaptioningError as error:
                    print(f"{name}: {error}", file=sys.stderr)  # it may name a path, which is not a visitor's business
                    raise CaptioningError(f"The model {name} cannot be loaded; the server's log says why.") from error
            return self._loaded[name]

    def warm_up(self, name: str | None = None) -> None:
        """Begins to load a captioner and to caption a grey square, so that the first visitor waits for neither."""

        def work() -> None:
            size = self.captioner(name).encoder.size
            self.submit([Photo("warm-up", Image.new("RGB", (size, size), "grey"))], name)

        self._openers.submit(work)

    def decoding(self, name: str | None = None) -> dict[str, Any]:
        """Returns the decoding settings that a captioner has of its own, without loading it."""
        config = read_json(checkpoint_folder(self._places[self.known(name)]) / "config.json")
        return {**DECODING, **config.get("decoding", {})}

    def known(self, name: str | None) -> str:
        """Returns `name`, or the default name. Raises CaptioningError when no captioner is called so."""
        if name and name not in self._places:
            raise unknown_name("model", shown(name), self.names)
        return name or self.default

    def open(self, data: bytes, name: str, model: str | None = None, thumb: bool = False) -> Future[Photo]:
        """Returns, later, an opened photo, made ready for the model's encoder. It raises CaptioningError if it cannot
        be opened. `data` is the file's content; the caller limits its size."""
        return self._openers.submit(self._open, data, name, model, thumb)

    def _open(self, data: bytes, name: str, model: str | None, thumb: bool) -> Photo:
        encoder = self.captioner(model).encoder
        upload = Upload(data, name)
        image = open_image(upload)
        # The encoder leaves a picture of its own size as it is, so this is the caption that the whole photo gets.
        square = Image.fromarray(encoder.prepare(image).permute(1, 2, 0).contiguous().numpy())
        if thumb:
            image.thumbnail((THUMB, THUMB), reducing_gap=2.0)
            image.convert("RGB").save(small := io.BytesIO(), "JPEG", quality=90)
        return Photo(upload.name, square, small.getvalue() if thumb else None)

    def submit(self, photos: Sequence[Photo], model: str | None = None, **options) -> Future[list[Caption]]:
        """Returns, later, one Caption a photo. `options` as `helpers.decoding.decode` takes them.

        Raises CaptioningError on an unknown model and Busy when too many photos wait; the future raises
        CaptioningError on options that the model does not take.
        """
        job = Job(self.known(model), options, list(photos))
        with self._changed:
            if sum(len(other.photos) for other in self._jobs) + len(job.photos) > self.limits.waiting:
                raise Busy("Too many photos are waiting. Try again in a few seconds.")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Ends the threads once they have done what they are at; who still waits is told that it is cancelled."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._changed.notify()
        self._openers.shutdown()
        self._worker.join()

    def _next(self) -> list[Job]:
        """Returns the oldest job and those behind it that can share its batch; none when the desk is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if self.gather and not self._closed and sum(len(job.photos) for job in self._jobs) < self.batch:
                self._changed.wait_for(lambda: self._closed, timeout=self.gather)
            together, rest = [], deque()
            for job in self._jobs:
                if not together or (_alike(job, together[0]) and _count(together) + len(job.photos) <= self.batch):
                    together.append(job)
                else:
                    rest.append(job)
            self._jobs = rest
            return together

    def _work(self) -> None:
        while together := self._next():
            together = [job for job in together if job.future.set_running_or_notify_cancel()]
            if not together:
                continue
            squares = [photo.square for job in together for photo in job.photos]
            try:
                captioner = self.captioner(together[0].model)
                captions = iter(captioner.caption(squares, batch_size=self.batch, **together[0].options))
            except BaseException as error:  # a worker that died would leave all later visitors waiting
                if not isinstance(error, CaptioningError):
                    traceback.print_exc()
                for job in together:
                    job.future.set_exception(error)
                continue
            self.batches += -(-len(squares) // self.batch)
            self.captions += len(squares)
            for job in together:
                named = [_named(next(captions), photo.name) for photo in job.photos]
                job.future.set_result(named)


def _count(jobs: Sequence[Job]) -> int:
    return sum(len(job.photos) for job in jobs)


def _alike(one: Job, other: Job) -> bool:
    """Returns whether two jobs get the same captions together as apart: what is drawn at random is drawn alone."""
    alone = one.options.get("method") == "sample"
    return one.model == other.model and not alone and one.options == other.options


def _named(caption: Caption, name: str) -> Caption:
    caption.image = name
    return caption
