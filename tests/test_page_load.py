"""The served page under load: a thousand good and bad requests, every nasty file, and limits on what it holds."""

from __future__ import annotations

import gc
import importlib
import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import HTTPException
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from websockets.exceptions import ConnectionClosed

from helpers import web_limits
from helpers.captioner import Captioner
from helpers.web_guard import Guard
from helpers.web_limits import FULL, LEAST, REFUSED, Limits, limit_uploads, refusal, too_many
from scripts.screenshot import page_process
from tests.nasty_images import bad_files, make_corpus
from tests.page_visitor import Visitor
from tests.test_captioner import write
from tests.test_service import INSIDE, is_readable_file
from tests.usage import bounded, memory, needs_proc

SMALL = Limits(request_bytes=100_000, held_bytes=300_000, refusals=3)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def server(toy: Path):
    """The page with an untrained captioner, in a process of its own: (address, process)."""
    with page_process("--checkpoint", str(toy)) as running:
        yield running


def check(shown, captions: int, errors: int) -> None:
    """Asserts how many photos got captions and how many a message, and that no message tells of the inside."""
    assert (len(shown.captions), len(shown.errors)) == (captions, errors), shown
    assert not shown.exceptions
    said = [*shown.errors, *shown.warnings]
    assert not [text for text in said for word in INSIDE if word in text.replace("\\", "")]


def intrude(visitor: Visitor, draw: random.Random) -> None:
    """Sends one request that no browser would send, and asserts that it is refused without a word of the inside."""
    url = f"/_stcore/upload_file/{visitor.session}/x"
    files = {"file": ("a.jpg", b"x")}
    forged = {"X-Xsrftoken": "2|forged|forged|1"}
    request = draw.choice([
        lambda: visitor.http.put(url, files=files, headers=forged),
        lambda: visitor.http.put("/_stcore/upload_file/no-such-visitor/x", files=files),
        lambda: visitor.http.put(url, content=b"no form"),
        lambda: visitor.http.put(url, files={"one": ("a", b"x"), "two": ("b", b"y")}),
        lambda: visitor.http.delete(url, headers=forged),
        lambda: visitor.http.post("/_stcore/stream"),
    ])  # fmt: skip
    answer = request()
    visitor.asked += 1
    assert answer.status_code >= 400, answer
    assert not [word for word in INSIDE if word in answer.text], answer.text


def a_visit(address: str, good: dict[bytes, str], bad: list[bytes], draw: random.Random) -> int:
    """One visitor uploads ten times, good and bad, and leaves, sometimes in the middle. Returns how many requests that
    were: uploads, intrusions and runs of the page's script."""
    with Visitor(address) as visitor:
        for number in range(10):
            kind = draw.choice(("good", "good", "bad", "many", "intrusion"))
            visitor.remove_all()
            if kind == "good":
                data = draw.choice(list(good))
                assert visitor.upload(f"{number}.jpg", data).is_success
                shown = visitor.run()
                check(shown, 1, 0)
                assert shown.captions == [good[data]]
            elif kind == "bad":
                assert visitor.upload("<b>../../x.jpg", draw.choice(bad)).is_success
                check(visitor.run(), 0, 1)
            elif kind == "many":
                visitor.upload("a.jpg", draw.choice(list(good)))
                visitor.upload("b.jpg", draw.choice(bad))
                check(visitor.run(), 1, 1)
            else:
                intrude(visitor, draw)
        if draw.random() < 0.3:
            visitor.upload("last.jpg", draw.choice(list(good)))
            visitor.socket.socket.shutdown(socket.SHUT_RDWR)  # gone without a word
        return visitor.asked


@needs_proc
def test_a_thousand_mixed_requests(server, toy, samples) -> None:
    address, process = server
    photos = samples[:6]
    captioner = Captioner.load(toy)
    good = {path.read_bytes(): captioner.caption([path])[0].caption or "(it said nothing)" for path in photos}
    bad = [data for data in bad_files().values() if len(data) < 300_000]
    draw, asked, before = random.Random(0), 0, 0.0
    while asked < 1000:
        asked += a_visit(address, good, bad, draw)
        if not before and asked > 200:  # what is loaded once is loaded, and allocators have what they keep
            before = memory(process.pid)
    growth = memory(process.pid) / before - 1
    assert growth < 0.10, f"memory grew by {growth:.0%} from {before:.0f} MB"
    assert process.poll() is None and httpx.get(f"{address}/_stcore/health").is_success


def test_every_nasty_file_gets_a_caption_or_one_message(server, tmp_path, samples) -> None:
    """In bounded time and memory: those of the command line, see test_bad_photos.py."""
    address, process = server
    corpus = {path: kind for path, kind in make_corpus(tmp_path).items() if is_readable_file(path)}
    assert len(corpus) > 400
    with Visitor(address) as visitor:
        visitor.upload("first.jpg", samples[0].read_bytes())
        check(visitor.run(), 1, 0)  # the captioner is loaded
        for start in range(0, len(corpus), 20):  # the page takes twenty at once
            visitor.remove_all()
            some = list(corpus.items())[start : start + 20]
            for number, (path, _) in enumerate(some):
                assert visitor.upload(f"{number}.jpg", Path(path).read_bytes()).is_success
            with bounded(seconds=60, megabytes=700, pid=process.pid):  # of twenty files
                shown = visitor.run()
            wrong = sum(kind == "error" for _, kind in some)
            right = sum(kind == "image" for _, kind in some)
            check(shown, len(shown.captions), len(some) - len(shown.captions))
            assert right <= len(shown.captions) <= len(some) - wrong, (start, shown)


def drip(visitor: Visitor, pieces: int, pause: float) -> tuple[int, str]:
    """Uploads a file that comes in pieces; returns status and text of the answer. 0 when the line was cut."""

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
        for _ in range(pieces):
            yield bytes(1000)
            time.sleep(pause)
        yield b"\r\n--x--\r\n"

    url, kind = f"/_stcore/upload_file/{visitor.session}/x", {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = visitor.http.put(url, content=body(), headers=kind)
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


def test_an_upload_that_drips_is_ended(root, tmp_path) -> None:
    page = tmp_path / "hasty.py"
    page.write_text(
        f"""import sys; sys.path.insert(0, {str(root)!r})
import streamlit as st
from helpers.web_guard import guarded_uploads
from helpers.web_limits import Limits
app = st.App({str(root / "app.py")!r}, middleware=guarded_uploads(Limits(upload_seconds=2)))
"""
    )
    with page_process(script=page) as (address, process), Visitor(address) as visitor:
        assert drip(visitor, 10, 0.0)[0] == 204
        begin = time.monotonic()
        status, text = drip(visitor, 200, 0.1)
        assert status in (0, 504) and time.monotonic() - begin < 15
        assert not text or "within 2 seconds" in text
        assert drip(visitor, 10, 0.0)[0] == 204 and process.poll() is None


def test_messages_that_no_browser_sends_end_their_visit_alone(server, samples) -> None:
    """A megabyte of typed text, what is no message, text in place of bytes."""
    address, process = server
    typed = BackMsg()
    typed.rerun_script.widget_states.widgets.append(WidgetState(id="prompt", string_value="a" * 1_100_000))
    with Visitor(address) as modest:
        for frame in (typed.SerializeToString(), bytes(9_000_000), bytes(11_000_000), b"\xff" * 1000, "a dog"):
            with Visitor(address) as rude, pytest.raises(ConnectionClosed):  # perhaps while it is still being sent
                rude.socket.send(frame)
                while True:
                    rude.receive()
        assert modest.upload("1.jpg", samples[0].read_bytes()).is_success
        check(modest.run(), 1, 0)
        assert process.poll() is None


def test_the_page_has_that_limit() -> None:
    (guard,) = importlib.import_module("app").app._user_middleware
    assert guard.cls is Guard and guard.kwargs["limits"].seconds == Limits().upload_seconds == 300
    assert {"PUT", "POST"} <= set(guard.kwargs["methods"])


# -- what it holds ------------------------------------------------------------------------------------------------


def test_a_visitor_has_a_limit_and_others_go_on(server, samples) -> None:
    address, _ = server
    padded = samples[0].read_bytes() + bytes(24_000_000 - samples[0].stat().st_size)
    with Visitor(address) as greedy, Visitor(address) as modest:
        assert greedy.upload("1.jpg", padded).is_success and greedy.upload("2.jpg", padded).is_success
        assert greedy.upload("3.jpg", padded).is_success  # and nothing of it is kept but its name
        assert greedy.upload("4.jpg", samples[1].read_bytes()).is_success  # there is room for a small one
        shown = greedy.run()
        check(shown, 3, 1)
        assert "3\\.jpg" in shown.errors[0] and "together may have 60 MB" in shown.errors[0]
        assert modest.upload("1.jpg", samples[0].read_bytes()).is_success
        check(modest.run(), 1, 0)
        greedy.remove_all()
        assert greedy.upload("3.jpg", padded).is_success


def file(name: str, size: int) -> UploadedFileRec:
    """Returns what Streamlit keeps of an upload; the page keeps the like of a pasted photo."""
    return UploadedFileRec(file_id=name, name=name, type="image/jpeg", data=bytes(size))


def refusals(manager, visitor: str) -> dict[str, str]:
    """Returns file -> why it was refused, "" for those that were not; asserts that nothing of refused ones is kept."""
    files = manager.file_storage[visitor].values()
    assert not [f for f in files if refusal(f) and f.data]
    return {f.file_id: refusal(f, SMALL) for f in files}


def test_one_file_over_its_limit_and_more_files_than_are_captioned(server, samples) -> None:
    address, _ = server
    data = samples[0].read_bytes()
    with Visitor(address) as visitor:
        assert visitor.upload("a.jpg", data + bytes(26_300_000)).status_code == 413
        assert drip(visitor, 27_000, 0.0)[0] in (0, 413)  # its size is not announced
        assert visitor.upload("a" * 10_000, data).status_code == 400  # a name may not be the load
        for number in range(22):
            assert visitor.upload(f"{number}.jpg", data).is_success
        shown = visitor.run()
        check(shown, 20, 0)
        assert "first 20 of 22" in shown.warnings[0]


@pytest.fixture
def manager() -> MemoryUploadedFileManager:
    """Streamlit's own, which may hold 300,000 bytes, 100,000 of one visitor."""
    made = MemoryUploadedFileManager("/upload")
    limit_uploads(made, SMALL)
    return made


def test_all_visitors_have_a_limit_together(manager) -> None:
    for visitor in "abc":
        manager.add_file(visitor, file("1", 60_000))
        manager.add_file(visitor, file("2", 40_000))
    manager.add_file("d", file("1", 50_000))
    assert refusals(manager, "a") == {"1": "", "2": ""} and refusals(manager, "d") == {"1": FULL}
    manager.remove_file("d", "1")
    manager.remove_file("a", "1")
    manager.add_file("d", file("2", 50_000))
    manager.add_file("d", file("3", 50_000))
    assert refusals(manager, "d") == {"2": "", "3": FULL}
    manager.remove_session_files("b")
    manager.add_file("d", file("4", 40_000))
    assert refusals(manager, "d") == {"2": "", "3": FULL, "4": ""}


def test_names_of_refused_files_have_a_limit_too(manager) -> None:
    manager.add_file("a", file("1", 100_000))
    for number in range(SMALL.refusals):
        manager.add_file("a", file(f"refused {number}", 50_000))
    assert [*refusals(manager, "a").values()] == ["", *[too_many(SMALL)] * SMALL.refusals]
    with pytest.raises(HTTPException, match="All your photos together") as refused:
        manager.add_file("a", file("one more", 1))
    assert refused.value.status_code == 413 and len(manager.file_storage["a"]) == 1 + SMALL.refusals
    added = 0
    with pytest.raises(HTTPException, match="as many photos as it can") as refused:
        for visitor in map(str, range(100)):
            manager.add_file(visitor, file("1", 90_000))
            added += 1
    assert refused.value.status_code == 503
    assert sum(web_limits.held(manager).values()) <= SMALL.held_bytes + 10 * SMALL.refusals * LEAST and added > 2


def test_empty_files_count_too(manager) -> None:
    for number in range(100_000 // LEAST + 1):
        manager.add_file("a", file(str(number), 0))
    assert [*refusals(manager, "a").values()] == [""] * 10 + [too_many(SMALL)]


def test_a_pasted_photo_counts_as_long_as_the_page_holds_it(manager) -> None:
    @dataclass(eq=False)
    class Pasted:
        data: bytes

    pasted = [Pasted(bytes(130_000)) for _ in range(2)]
    for item in pasted:
        web_limits.remember(item)
    manager.add_file("a", file("1", 60_000))
    pasted.clear()
    del item
    gc.collect()
    manager.add_file("a", file("2", 60_000))
    assert refusals(manager, "a") == {"1": FULL, "2": ""}


def test_a_pretended_type_is_no_way_around(manager) -> None:
    """The type is the visitor's word. One who says that his own photo was refused is told so, and that is all."""
    false = UploadedFileRec(file_id="1", name="1", type=REFUSED, data=bytes(50_000))
    manager.add_file("a", false)
    assert refusal(false) and web_limits.held(manager) == {"a": 50_000, "": 0}


def test_limiting_twice_is_limiting_once(manager) -> None:
    before = manager.add_file
    limit_uploads(manager, Limits(request_bytes=1))
    assert manager.add_file is before


def test_an_unknown_manager_is_no_page_without_limits() -> None:
    with pytest.raises(TypeError, match="can limit"):
        limit_uploads(SimpleNamespace(add_file=print), Limits())
