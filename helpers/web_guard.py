"""Around the HTTP service: limits on size and time, errors that say nothing of the inside, and the page at /docs."""

from __future__ import annotations

import asyncio
import json
import traceback
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

from helpers.web_limits import Limits

if TYPE_CHECKING:
    from fastapi.middleware import Middleware
DRAIN = 3  # a request may be so many times too large and still be read to its end, so that its sender hears why


class Guard:
    """ASGI middleware: a request that is too large gets 413, one that takes too long 504, a failure inside 500.

    `methods`: only requests with these are guarded, where given; a slow reader of a large answer does no harm.
    """

    def __init__(self, app, limits: Limits, methods: tuple[str, ...] = ()):
        self.app, self.limits, self.methods = app, limits, methods

    async def __call__(self, scope, receive, send) -> None:
        """Handles one request, see the ASGI specification."""
        if scope["type"] != "http" or (self.methods and scope["method"] not in self.methods):
            return await self.app(scope, receive, send)
        started = finished = False
        read = 0
        over = _declared(scope) > self.limits.request_bytes

        async def watched_receive():
            nonlocal finished, read, over
            message = await receive()
            read += len(message.get("body", b""))
            finished = not message.get("more_body", False)
            over = over or read > self.limits.request_bytes
            return {"type": "http.disconnect"} if over else message

        async def watched_send(message) -> None:
            nonlocal started
            if over:  # whatever the application makes of the broken body, the answer is 413
                return
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            async with asyncio.timeout(self.limits.seconds):
                if not over:
                    try:
                        await self.app(scope, watched_receive, watched_send)
                    except Exception:
                        if not over:
                            raise
                while over and not finished and read < DRAIN * self.limits.request_bytes:
                    await watched_receive()
            if over:
                size = f"{self.limits.request_bytes // 10**6} MB"
                await _answer(send, 413, f"The request is larger than {size}. Send fewer or smaller photos.")
        except TimeoutError:
            if not started:
                await _answer(send, 504, f"Not done within {self.limits.seconds:g} seconds. Send fewer photos.")
        except Exception:
            traceback.print_exc()  # for the server's log; the visitor learns only that it is not his fault
            if not started:
                await _answer(send, 500, "Something went wrong in the service; its log says what.")


def guarded_uploads(limits: Limits) -> list[Middleware]:
    """Returns the middleware of the page: what a visitor sends has to be there after `limits.upload_seconds`."""
    from fastapi.middleware import Middleware

    return [Middleware(Guard, limits=replace(limits, seconds=limits.upload_seconds), methods=("POST", "PUT", "PATCH"))]


def _declared(scope) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0
async def _answer(send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = {b"content-type": b"application/json", b"content-length": b"%d" % len(body), b"connection": b"close"}
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": body})
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem .3rem 0;
vertical-align: top; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
code, pre { font: .9em ui-monospace, monospace } pre { overflow-x: auto; padding: .8rem; border-radius: .4rem;
background: color-mix(in srgb, currentColor 8%, transparent) }
label { display: block; margin-top: .6rem } input, button { font: inherit; padding: .3rem; max-width: 100% }
button { margin-top: 1rem; padding: .4rem 1.2rem }
"""


def describe(schema: dict, limits: Limits) -> str:
    """Returns the OpenAPI schema as a page of plain HTML with a form to try it; nothing in it comes from elsewhere."""
    parts = []
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            parts.append(f"<h2><code>{verb.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>")
            fields = _fields(schema, operation)
            if fields:
                rows = "".join(f"<tr><td><code>{name}</code></td><td>{text}</td></tr>" for name, _, text in fields)
                parts.append(f"<table><tr><th scope=col>field<th scope=col>what it is</tr>{rows}</table>")
                parts.append(_form(path, fields))
            answers = "".join(
                f"<tr><td>{code}</td><td>{escape(answer['description'])}</td></tr>"
                for code, answer in operation["responses"].items()
            )
            parts.append(f"<table><tr><th scope=col>status<th scope=col>what it means</tr>{answers}</table>")
    title, text = escape(schema["info"]["title"]), escape(schema["info"]["description"].replace("`", ""))
    limit = (
        f"At most {limits.photos} photos a request, {limits.photo_bytes // 10**6} MB a photo, "
        f"{limits.request_bytes // 10**6} MB and {limits.seconds:g} seconds in all."
    )
    example = "curl -F images=@photo.jpg -F images=@other.jpg -F beam_size=3 http://127.0.0.1:8000/caption"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style><body><main><h1>{title}</h1><p>{text} {limit} The same for "
        f"machines: <a href=openapi.json>openapi.json</a>.</p><pre>{example}</pre>{''.join(parts)}</main>"
    )


def _fields(schema: dict, operation: dict) -> list[tuple[str, bool, str]]:
    """Returns (name, required, HTML) of each field of an operation's form."""
    if "requestBody" not in operation:
        return []
    content = next(iter(operation["requestBody"]["content"].values()))["schema"]
    form = schema["components"]["schemas"][content["$ref"].rpartition("/")[2]]
    required = form.get("required", [])
    return [(escape(n), n in required, escape(f.get("description", ""))) for n, f in form["properties"].items()]


def _form(path: str, fields: list[tuple[str, bool, str]]) -> str:
    rows = "".join(
        f"<label>{name} <input name={name}{' type=file multiple accept=image/*' if name == 'images' else ''}"
        f"{' required' if required else ''}></label>"
        for name, required, _ in fields
    )
    return (
        f"<details><summary>Try it</summary><form method=post action={escape(path.lstrip('/'))} "
        f"enctype=multipart/form-data>{rows}<button>Send</button></form></details>"
    )
