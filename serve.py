"""Captions over HTTP: `python serve.py`, then `curl -F images=@photo.jpg http://127.0.0.1:8000/caption`.

Answers with what `generate_caption.py --json` prints, as a list. Listens on this machine alone unless --host says
otherwise: there is no login, so put a proxy that has one in front before others may reach it.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from helpers.captioner import Caption
from helpers.decoding import CLASH, OPTIONS, clash, decoding_options
from helpers.files import CaptioningError, pick_device
from helpers.images import shown
from helpers.web_desk import Busy, Desk, Photo
from helpers.web_guard import Guard, describe
from helpers.web_limits import LIMITS, Limits

AT_ONCE = 8  # requests whose photos are in memory; others wait, with what they sent on disk
CONNECTIONS = 128
FIELDS = ("images", "model", *OPTIONS, "seed")
SAID = {
    200: {"description": "One entry a photo, in order. A photo that cannot be captioned has `error` and no caption."},
    413: {"description": "Too many photos, or too large."},
    422: {"description": "No photo could be captioned (then one entry each), or a field is wrong (then `error`)."},
    503: {"description": "Too many photos are waiting."},
    504: {"description": "Out of time."},
}


def field(name: str, most: float):
    """Returns the type of the form field of a decoding option: a number as the command line takes it, but at most
    `most`, since strangers send it; or nothing."""
    option = OPTIONS[name]
    low = {"gt" if option.above else "ge": option.low}
    finite = {"allow_inf_nan": False} if option.kind is float else {}
    text = option.text[0].upper() + option.text[1:] + "."
    return Annotated[option.kind | None, Form(**low, le=min(option.high, most), **finite, description=text)]


def make_app(desk: Desk, limits: Limits = LIMITS) -> FastAPI:
    """Returns the service, ready for any ASGI server. The captioners of `desk` are loaded when first asked for."""

    @asynccontextmanager
    async def life(app: FastAPI):
        app.state.room = asyncio.Semaphore(AT_ONCE)
        yield

    app = FastAPI(
        title="Image captioning",
        version="1.0.0",
        description="Photos in, captions out: `POST /caption`.",
        docs_url=None,  # FastAPI's own pages fetch their scripts from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    app.add_middleware(Guard, limits=limits)

    @app.post("/caption", responses=SAID, summary="Write a caption for each photo")
    async def caption(
        request: Request,
        images: Annotated[list[UploadFile], File(description=f"One to {limits.photos} photos.")],
        model: Annotated[str | None, Form(description="A captioner; /healthz lists them.")] = None,
        beam_size: field("beam_size", 20) = None,
        top_p: field("top_p", 1) = None,
        top_k: field("top_k", 100_000) = None,
        temperature: field("temperature", 100) = None,
        repetition_penalty: field("repetition_penalty", 100) = None,
        length_penalty: field("length_penalty", 10) = None,
        clip_weight: field("clip_weight", 100) = None,
        consensus_weight: field("consensus_weight", 100) = None,
        tag_weight: field("tag_weight", 100) = None,
        flaw_weight: field("flaw_weight", 100) = None,
        prompt: Annotated[str | None, Form(max_length=200, description="The words the caption begins with.")] = None,
        max_length: field("max_length", 60) = None,
        seed: Annotated[int | None, Form(ge=0, le=2**63 - 1, description="Makes sampling repeatable.")] = None,
    ) -> list[dict]:
        if unknown := {*(await request.form())} - {*FIELDS}:
            raise HTTPException(422, f"Unknown field {shown(min(unknown))!r}. Known: {', '.join(FIELDS)}.")
        if len(images) > limits.photos:
            raise HTTPException(413, f"{len(images)} photos; send at most {limits.photos} a request.")
        given = {name: value for name, value in locals().items() if name in FIELDS[2:]}
        if clash(given):
            raise HTTPException(422, CLASH)
        model = desk.known(model)
        async with app.state.room:
            results = await asyncio.gather(*(one(image, model) for image in images))
        good = [result for result in results if isinstance(result, Photo)]
        made = iter(())
        if good:
            made = iter(await asyncio.wrap_future(desk.submit(good, model, **decoding_options(given))))
        entries = [(next(made) if isinstance(result, Photo) else result).as_dict() for result in results]
        return JSONResponse(entries, status_code=200 if good else 422)

    async def one(image: UploadFile, model: str) -> Photo | Caption:
        """Opens a photo; where that fails, the answer that stands for its caption."""
        name = shown(image.filename or "the photo")
        try:
            if (image.size or 0) > limits.photo_bytes:
                raise CaptioningError(f"{name} is larger than {limits.photo_bytes // 10**6} MB. Send a smaller copy.")
            return await asyncio.wrap_future(desk.open(await image.read(), name, model))
        except CaptioningError as error:
            return Caption(name, None, None, model, error=str(error))

    @app.get("/healthz", summary="Whether it is well, and which captioners there are")
    async def healthz() -> dict:
        state = {"status": "ok" if desk.alive else "failed", "models": desk.names, "default": desk.default}
        counts = {"waiting": desk.waiting, "captions": desk.captions, "batches": desk.batches}
        return JSONResponse(state | counts, status_code=200 if desk.alive else 503)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
        return HTMLResponse(describe(app.openapi(), limits), headers={"Content-Security-Policy": policy})

    @app.get("/", include_in_schema=False)
    async def front() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.exception_handler(CaptioningError)
    async def refused(request: Request, error: CaptioningError) -> JSONResponse:
        if isinstance(error, Busy):
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "2"})
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"error": shown("; ".join(problems))}, 422)

    async def declined(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    for which in (HTTPException, 400, 404, 405):  # the numbers: those that Starlette, below FastAPI, raises itself
        app.add_exception_handler(which, declined)

    return app


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = argparse.ArgumentParser(description="Caption photos over HTTP.")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    p.add_argument("--port", type=int, default=8000, help="default: 8000")
    p.add_argument("--checkpoint", action="append", default=[], metavar="FOLDER", help="a captioner of your own")
    p.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    p.add_argument("--seconds", type=float, default=LIMITS.seconds, help="time a request may take (default: 30)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the default captioner and serves until interrupted. Returns the exit status, 2 when it cannot start."""
    import uvicorn

    arguments = parser().parse_args(argv)
    limits = Limits(seconds=arguments.seconds)
    try:
        desk = Desk(arguments.checkpoint, pick_device(arguments.device), limits=limits)
        desk.captioner()
    except CaptioningError as error:
        print(f"serve.py: error: {error}", file=sys.stderr)
        return 2
    print(f"Captions at http://{arguments.host}:{arguments.port}/caption, described at /docs.", flush=True)
    uvicorn.run(
        make_app(desk, limits), host=arguments.host, port=arguments.port, log_level="warning", server_header=False,
        limit_concurrency=CONNECTIONS, timeout_keep_alive=10, timeout_graceful_shutdown=10,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
