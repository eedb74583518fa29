"""Captions over HTTP: `python serve.py`, then `curl -F images=@photo.jpg http://127.0.0.1:8000/caption`.

Answers with what `generate_caption.py --json` prints, as a list; /docs describes it. Listens on this machine alone
unless --host says otherwise: there is no login and no limit to what is sent, so put a proxy in front that has both
before others may reach it.
"""

import argparse
import io
import sys
import threading
from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from generate_caption import CLASH, OPTIONS, clash, decoding_options
from helpers.captioner import Captioner
from helpers.files import CaptioningError, pick_device
from helpers.images import shown

PHOTOS = 20  # a request
PHOTO_BYTES = 25_000_000
CONNECTIONS = 128
FIELDS = ("images", *OPTIONS, "seed")
SAID = {
    200: {"description": "One entry a photo, in order. A photo that cannot be captioned has `error` and no caption."},
    413: {"description": "Too many photos, or too large."},
    422: {"description": "No photo could be captioned (then one entry each), or a field is wrong (then `detail`)."},
}


class Upload(io.BytesIO):
    """The bytes of a file with the name that its sender gave it."""

    def __init__(self, data: bytes, name: str):
        super().__init__(data)
        self.name = shown(name) or "the photo"


def field(name: str, most: float):
    """Returns the type of the form field of a decoding option: a number as the command line takes it, but at most
    `most`, since strangers send it; or nothing."""
    option = OPTIONS[name]
    low = {"gt" if option.above else "ge": option.low}
    finite = {"allow_inf_nan": False} if option.kind is float else {}
    return Annotated[option.kind | None, Form(**low, le=min(option.high, most), **finite, description=option.text)]


def make_app(captioner: Captioner) -> FastAPI:
    """Returns the service, ready for any ASGI server. Requests are captioned one after the other."""
    app = FastAPI(title="Image captioning", version="1.0.0", description="Photos in, captions out: `POST /caption`.")
    lock = threading.Lock()

    @app.post("/caption", responses=SAID, summary="Write a caption for each photo")
    async def caption(
        request: Request,
        images: Annotated[list[UploadFile], File(description=f"One to {PHOTOS} photos.")],
        beam_size: field("beam_size", 20) = None,
        top_p: field("top_p", 1) = None,
        top_k: field("top_k", 100_000) = None,
        temperature: field("temperature", 100) = None,
        repetition_penalty: field("repetition_penalty", 100) = None,
        length_penalty: field("length_penalty", 10) = None,
        prompt: Annotated[str | None, Form(max_length=200, description="The words the caption begins with.")] = None,
        max_length: field("max_length", 60) = None,
        seed: Annotated[int | None, Form(ge=0, le=2**63 - 1, description="Makes sampling repeatable.")] = None,
    ) -> list[dict]:
        given = {name: value for name, value in locals().items() if name in FIELDS[1:]}
        if unknown := {*(await request.form())} - {*FIELDS}:
            raise HTTPException(422, f"Unknown field {shown(min(unknown))!r}. Known: {', '.join(FIELDS)}.")
        if len(images) > PHOTOS:
            raise HTTPException(413, f"{len(images)} photos; send at most {PHOTOS} a request.")
        if clash(given):
            raise HTTPException(422, CLASH)
        if any((image.size or 0) > PHOTO_BYTES for image in images):
            raise HTTPException(413, f"A photo is larger than {PHOTO_BYTES // 10**6} MB. Send a smaller copy.")
        photos = [Upload(await image.read(), image.filename or "") for image in images]
        try:
            entries = await run_in_threadpool(answers, photos, decoding_options(given))
        except CaptioningError as error:  # of the options, since what is wrong with a photo stands in its entry
            raise HTTPException(422, str(error)) from error
        good = any("error" not in entry for entry in entries)
        return JSONResponse(entries, status_code=200 if good else 422)

    def answers(photos: list[Upload], options: dict) -> list[dict]:
        with lock:
            return [entry.as_dict() for entry in captioner.caption(photos, **options)]

    @app.get("/health", summary="Whether it is well, and which captioner it has")
    async def health() -> dict:
        return {"status": "ok", "model": captioner.name}

    return app


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = argparse.ArgumentParser(description="Caption photos over HTTP.")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    p.add_argument("--port", type=int, default=8000, help="default: 8000")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--model", metavar="NAME", help="in data/checkpoints/ (default: the best), or clipcap-coco")
    which.add_argument("--checkpoint", metavar="FOLDER", help="a captioner of your own")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the captioner and serves until interrupted. Returns the exit status, 2 when it cannot start."""
    import uvicorn

    arguments = parser().parse_args(argv)
    try:
        captioner = Captioner.load(arguments.checkpoint or arguments.model, pick_device(arguments.device))
    except CaptioningError as error:
        print(f"serve.py: error: {error}", file=sys.stderr)
        return 2
    print(f"Captions at http://{arguments.host}:{arguments.port}/caption, described at /docs.", flush=True)
    uvicorn.run(
        make_app(captioner), host=arguments.host, port=arguments.port, log_level="warning", server_header=False,
        limit_concurrency=CONNECTIONS, timeout_keep_alive=10, timeout_graceful_shutdown=10,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
