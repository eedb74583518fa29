"""The HTTP service: equal to the command line, good and bad requests, limits, batching, and 1,000 requests in a row."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import generate_caption
import serve
from helpers import web_desk
from helpers.captioner import Captioner
from helpers.decoding import OPTIONS
from helpers.files import CaptioningError
from helpers.web_desk import Busy, Desk
from helpers.web_limits import Limits
from scripts.screenshot import free_port
from tests.nasty_images import bad_files, good_files, make_corpus
from tests.test_captioner import write
from tests.usage import bounded, memory, needs_proc

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
BEGIN = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
INSIDE = ("Traceback", 'File "', "/helpers/", "/work", "/home", "/tmp", ".py")

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A checkpoint of an untrained model, quick to load and to decode."""
    return write(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def desk(toy: Path):
    made = Desk([toy])
    made.captioner()
    yield made
    made.close()


def post(*photos: tuple[str, bytes] | Path, **fields) -> Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]:
    """Returns a request to /caption, to be given to `send`."""
    pairs = [(photo.name, photo.read_bytes()) if isinstance(photo, Path) else photo for photo in photos]
    files = [("images", (name, data, "application/octet-stream")) for name, data in pairs]
    return lambda client: client.post("/caption", files=files, data=fields)


def send(desk: Desk, *requests, limits: Limits = web_desk.LIMITS) -> list[httpx.Response]:
    """Sends the requests to a service in this process, all at once. Checks that no answer tells of the inside."""

    async def run() -> list[httpx.Response]:
        app = serve.make_app(desk, limits)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service", timeout=120) as client,
        ):
            return await asyncio.gather(*(request(client) for request in requests))

    answers = asyncio.run(run())
    for answer in answers:
        assert not [word for word in INSIDE if word in answer.text], answer.text
    return answers


def from_command_line(capsys, *arguments: object) -> list[dict]:
    """Returns what `generate_caption.py --json` prints."""
    capsys.readouterr()
    generate_caption.main([*map(str, arguments), "--json", "--device", "cpu"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def same(one: dict, other: dict) -> bool:
    """Returns whether two entries are equal but for the folder in the name and rounding in the last digits."""
    for entry in (one, other):
        entry["image"] = Path(entry["image"]).name
    pairs = zip([one, *one["alternatives"]], [other, *other["alternatives"]], strict=True)
    close = all(abs(a.pop("log_prob") - b.pop("log_prob")) < 1e-3 for a, b in pairs)
    return close and one == other


# -- what it answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"beam_size": 2, "length_penalty": 0.2}, {"beam_size": 1}, {"max_length": 3, "repetition_penalty": 1.5},
     {"top_p": 0.9, "seed": 7}, {"top_k": 4, "temperature": 1.3, "seed": 8}, {"prompt": "the dog"}],
)  # fmt: skip
def test_captions_equal_those_of_the_command_line(desk, toy, samples, capsys, options) -> None:
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    expected = from_command_line(capsys, "--checkpoint", toy, *given, "--image_path", *samples[:5])
    (answer,) = send(desk, post(*samples[:5], **options))
    assert answer.status_code == 200
    assert len(expected) == 5 and all(map(same, answer.json(), expected))


def test_captions_of_a_shipped_model_equal_those_of_the_command_line(samples, capsys) -> None:
    names = web_desk.available() or pytest.skip("data/checkpoints/ holds no captioner yet")
    shipped = Desk()
    expected = from_command_line(capsys, "--image_path", *samples[:3])
    answers = send(shipped, *(post(photo) for photo in samples[:3]))
    assert all(same(answer.json()[0], entry) for answer, entry in zip(answers, expected, strict=True))
    assert answers[0].json()[0]["model"] == names[0]
    shipped.close()


def test_a_bad_photo_does_not_spoil_the_good_ones(desk, samples) -> None:
    (answer,) = send(desk, post(samples[0], ("notes.jpg", b"A dog runs.\n"), ("empty.png", b""), samples[1]))
    first, text, empty, last = answer.json()
    assert answer.status_code == 200 and None not in (first["caption"], last["caption"])
    assert text["caption"] is None and "it holds text" in text["error"] and text["image"] == "notes.jpg"
    assert "0 bytes" in empty["error"]


def test_only_bad_photos_is_the_senders_mistake(desk) -> None:
    (answer,) = send(desk, post(("a.jpg", b"?")))
    assert answer.status_code == 422 and "not an image" in answer.json()[0]["error"]


def test_every_nasty_file_gets_a_caption_or_one_message(desk, tmp_path) -> None:
    corpus = {path: kind for path, kind in make_corpus(tmp_path).items() if is_readable_file(path)}
    assert len(corpus) > 200
    paths = list(corpus)
    requests = [
        post(*((f"{i}", p.read_bytes()) for i, p in enumerate(paths[k : k + 20]))) for k in range(0, len(paths), 20)
    ]
    answers = []
    for request in requests:
        with bounded(seconds=60, megabytes=700):  # for twenty files; 10 s are allowed for one at the command line
            answers += send(desk, request)[0].json()
    for path, entry in zip(paths, answers, strict=True):
        assert (entry["caption"] is None) == ("error" in entry), path
        if corpus[path] != "either":
            assert ("error" in entry) == (corpus[path] == "error"), (path, entry)


def is_readable_file(path: Path | str | bytes) -> bool:
    """Returns whether a browser could send it: not a pipe, a folder, a loop of links, or missing."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError, TypeError):
        return False


def test_odd_names_come_back_on_one_line(desk, samples) -> None:
    data = samples[0].read_bytes()
    (answer,) = send(desk, post(("../../etc/passwd", data), ("<script>.jpg", data), ("日本.jpg", data)))
    assert [entry["image"] for entry in answer.json()][1:] == ["<script>.jpg", "日本.jpg"]
    assert not any("error" in entry for entry in answer.json())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "no-such"}, "Unknown model 'no-such'"),
        ({"model": "/etc"}, "Unknown model '/etc'"),
        ({"model": "../../data/checkpoints/cnn-lstm"}, "Unknown model"),
        ({"beam_size": "0"}, "beam_size"),
        ({"beam_size": "many"}, "beam_size"),
        ({"temperature": "nan"}, "temperature"),
        ({"top_p": "1.5"}, "top_p"),
        ({"max_length": "100000"}, "max_length"),
        ({"prompt": "a" * 300}, "prompt"),
        ({"prompt": "zeppelin"}, "does not know 'zeppelin'"),
        ({"beam_size": "3", "top_k": "2"}, "choose"),
        ({"beamsize": "3"}, "Unknown field 'beamsize'"),
    ],
)
def test_wrong_fields_are_named(desk, samples, fields, message) -> None:
    (answer,) = send(desk, post(samples[0], **fields))
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (422, lambda client: client.post("/caption")),
        (422, lambda client: client.post("/caption", json={"images": "x"})),
        (422, lambda client: client.post("/caption", data={"images": "not a file"})),
        (400, lambda client: client.post("/caption", content=b"\xff\xd8", headers=FORM)),
        (400, lambda client: client.post("/caption", content=b"x", headers={"Content-Type": "multipart/form-data"})),
        (405, lambda client: client.get("/caption")),
        (404, lambda client: client.get("/../../etc/passwd")),
    ],
)  # fmt: skip
def test_requests_that_are_none(desk, status, request_) -> None:
    (answer,) = send(desk, request_)
    assert answer.status_code == status and answer.json()["error"]


def test_empty_fields_of_a_form_are_no_fields(desk, samples) -> None:
    blank, none = send(desk, post(samples[0], **dict.fromkeys(serve.FIELDS[1:], "")), post(samples[0]))
    assert blank.status_code == 200 and same(blank.json()[0], none.json()[0])


def test_it_takes_the_decoding_options_of_the_command_line(desk) -> None:
    (schema,) = send(desk, lambda c: c.get("/openapi.json"))
    (form,) = (body for name, body in schema.json()["components"]["schemas"].items() if name.startswith("Body"))
    fields = {*form["properties"]}
    assert fields == {*serve.FIELDS} == {"images", "model", "seed", *OPTIONS}
    arguments = {action.dest for action in generate_caption.parser()._actions}
    assert fields - {"images"} <= arguments and {"temperature", "consensus_weight"} <= fields
    (likeliest,) = (kind for kind in form["properties"]["top_p"]["anyOf"] if kind["type"] == "number")
    assert likeliest["exclusiveMinimum"] == 0 and likeliest["maximum"] == 1
    (beam,) = (kind for kind in form["properties"]["beam_size"]["anyOf"] if kind["type"] == "integer")
    assert beam["minimum"] == 1 and beam["maximum"] == 20  # the command line has no upper bound


def test_health_and_description(desk) -> None:
    health, schema, docs, front = send(
        desk, *(lambda c, path=path: c.get(path) for path in ("/healthz", "/openapi.json", "/docs", "/"))
    )
    assert health.json()["status"] == "ok" and health.json()["default"] == "toy"
    assert schema.json()["paths"].keys() == {"/caption", "/healthz"}
    assert front.is_redirect and docs.status_code == 200
    for field in serve.FIELDS:
        assert f"<code>{field}</code>" in docs.text
    assert "src=" not in docs.text and "<script" not in docs.text  # it works where there is no network


# -- limits -------------------------------------------------------------------------------------------------------


def test_too_many_and_too_large(desk, samples) -> None:
    small = Limits(photo_bytes=200_000, request_bytes=400_000, photos=3)
    large = ("large.jpg", samples[0].read_bytes() + bytes(250_000))
    many, photo, request = send(desk, post(*samples[:4]), post(large), post(large, ("b", bytes(400_000))), limits=small)
    assert many.status_code == 413 and "at most 3" in many.json()["error"]
    assert photo.status_code == 422 and "Send a smaller copy" in photo.json()[0]["error"]
    assert request.status_code == 413 and "The request is larger" in request.json()["error"]


def test_a_body_without_a_length_is_counted(desk) -> None:
    async def endless():
        yield BEGIN
        for _ in range(100):
            yield bytes(10_000)

    (answer,) = send(
        desk, lambda c: c.post("/caption", content=endless(), headers=FORM), limits=Limits(request_bytes=100_000)
    )
    assert answer.status_code == 413


class Slow:
    """Makes a desk's captioner wait until it is let go."""

    def __init__(self, desk: Desk, monkeypatch):
        self.go, captioner = threading.Event(), desk.captioner()
        before = captioner.caption
        monkeypatch.setattr(captioner, "caption", lambda *a, **k: self.go.wait(60) and before(*a, **k))


def test_what_takes_too_long_is_answered_in_time(desk, samples, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        slow = Slow(desk, patch)
        begin = time.monotonic()
        (answer,) = send(desk, post(samples[0]), limits=Limits(seconds=1.5))
        assert answer.status_code == 504 and "1.5 seconds" in answer.json()["error"]
        assert time.monotonic() - begin < 30
        slow.go.set()
    (answer,) = send(desk, post(samples[0]))
    assert answer.status_code == 200


def test_a_sender_who_dawdles_is_answered_in_time(desk) -> None:
    async def trickle():
        yield BEGIN
        while True:
            yield b"."
            await asyncio.sleep(0.05)

    begin = time.monotonic()
    (answer,) = send(desk, lambda c: c.post("/caption", content=trickle(), headers=FORM), limits=Limits(seconds=1))
    assert answer.status_code == 504 and time.monotonic() - begin < 30


def test_a_full_waiting_room_says_so(toy, samples, monkeypatch) -> None:
    desk = Desk([toy], limits=Limits(waiting=2))
    slow = Slow(desk, monkeypatch)
    threading.Timer(3, slow.go.set).start()
    answers = send(desk, *(post(samples[0]) for _ in range(8)))
    full = [answer for answer in answers if answer.status_code == 503]
    assert 0 < len(full) < 8 and all(answer.headers["Retry-After"] for answer in full)
    assert {answer.status_code for answer in answers} == {200, 503}
    desk.close()


def test_a_failure_inside_stays_inside(desk, samples, monkeypatch, capsys) -> None:
    def fail(*_, **__):
        raise RuntimeError("/home/someone/secret.py")

    with monkeypatch.context() as patch:
        patch.setattr(desk.captioner(), "caption", fail)
        (answer,) = send(desk, post(samples[0]))
    assert answer.status_code == 500 and answer.json() == {
        "error": "Something went wrong in the service; its log says what."
    }
    assert "/home/someone/secret.py" in capsys.readouterr().err
    assert send(desk, post(samples[0]))[0].status_code == 200


# -- one desk for all ---------------------------------------------------------------------------------------------


def test_what_comes_together_is_encoded_together(desk, samples, monkeypatch) -> None:
    sizes, encoder = [], desk.captioner().encoder
    before = encoder.features
    monkeypatch.setattr(encoder, "features", lambda pixels, kind: sizes.append(len(pixels)) or before(pixels, kind))
    photos = [samples[number % len(samples)] for number in range(40)]
    answers = send(desk, *(post(photo) for photo in photos))
    assert all(answer.status_code == 200 for answer in answers)
    assert sum(sizes) == 40 and len(sizes) <= 20, f"{len(sizes)} encoder batches for 40 requests: {sizes}"
    alone = {photo: send(desk, post(photo))[0].json()[0] for photo in samples[:3]}
    for photo, answer in zip(photos, answers, strict=True):
        if photo in alone:
            assert same(answer.json()[0], json.loads(json.dumps(alone[photo])))


def test_neighbours_with_other_settings_do_not_mix(desk, samples) -> None:
    settings = [{}, {"beam_size": 1}, {"max_length": 2}, {"temperature": 1.0, "seed": 3}, {"prompt": "the cat"}] * 4
    together = send(desk, *(post(samples[0], **options) for options in settings))
    alone = [send(desk, post(samples[0], **options))[0] for options in settings[:5]]
    for number, answer in enumerate(together):
        assert same(answer.json()[0], alone[number % 5].json()[0])


def test_a_captioner_is_loaded_once(toy, monkeypatch) -> None:
    loads, load = [], Captioner.load
    monkeypatch.setattr(Captioner, "load", lambda *a, **k: loads.append(a) or load(*a, **k))
    desk = Desk([toy])
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: desk.captioner(), range(8)))
    assert len(loads) == len(found) == 1
    desk.close()


def test_own_checkpoints_come_first_and_bad_ones_are_refused(toy, tmp_path, capsys) -> None:
    desk = Desk([toy])
    assert desk.default == desk.names[0] == "toy" and desk.names[1:] == web_desk.available()
    assert desk.decoding()["beam_size"] == 3
    desk.close()
    with pytest.raises(CaptioningError):
        Desk([tmp_path])
    assert serve.main(["--checkpoint", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_reported_without_its_path(tmp_path, samples, capsys) -> None:
    folder = write(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"?")
    desk = Desk([folder])
    (answer,) = send(desk, post(samples[0]))
    assert answer.status_code == 422 and "broken cannot be loaded" in answer.json()[0]["error"]
    assert str(folder) in capsys.readouterr().err
    desk.close()


def test_a_full_desk_refuses_at_once(toy, samples, monkeypatch) -> None:
    desk = Desk([toy], limits=Limits(waiting=1))
    slow = Slow(desk, monkeypatch)
    photo = desk.open(samples[0].read_bytes(), "a.jpg").result()
    with pytest.raises(Busy):
        for _ in range(3):
            desk.submit([photo])
    slow.go.set()
    desk.close()


# -- the real server ----------------------------------------------------------------------------------------------


@pytest.fixture
def server(root: Path, toy: Path):
    """A served toy captioner in a process of its own: (address, process)."""
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--checkpoint", str(toy), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/healthz", timeout=5)
            break
        except httpx.TransportError:
            assert process.poll() is None, "the service did not start"
            time.sleep(0.2)
    yield address, process
    process.terminate()
    process.wait(20)


def files_of(photos: list[Path]) -> list:
    """Returns photos as httpx takes files."""
    return [("images", (photo.name, photo.read_bytes())) for photo in photos]


def mixed_requests(samples: list[Path], count: int) -> list[tuple[bool, list]]:
    """Returns (whether it must succeed, files) of good and bad requests, in an order of its own."""
    good = [data for name, data in good_files().items() if len(data) < 100_000 and "within" not in name]
    good += [path.read_bytes() for path in samples]
    bad = [data for data in bad_files().values() if len(data) < 300_000]
    draw = random.Random(0)
    out = []
    for _ in range(count):
        fine = draw.random() < 0.5
        chosen = [draw.choice(good if fine else bad) for _ in range(draw.choice((1, 1, 1, 1, 3)))]
        out.append((fine, [("images", (f"{k}.jpg", data)) for k, data in enumerate(chosen)]))
    return out


@needs_proc
def test_a_thousand_mixed_requests(server, samples) -> None:
    address, process = server
    with httpx.Client(base_url=address, timeout=300) as client:

        def ask(request: tuple[bool, list]) -> int:
            fine, files = request
            answer = client.post("/caption", files=files)
            assert not [word for word in INSIDE if word in answer.text], answer.text
            assert (answer.status_code == 200) == fine, (answer.status_code, answer.text)
            return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            # The libraries below keep a plan for each size of a batch, and buffers for each thread: all are made here.
            list(map(ask, [(True, files_of(samples[:1] * size)) for size in range(1, 17)]))
            list(pool.map(ask, mixed_requests(samples, 100)))
            before = memory(process.pid)
            statuses = list(pool.map(ask, mixed_requests(samples, 1000)))
        growth = memory(process.pid) / before - 1
        health = client.get("/healthz").json()
    assert 400 < statuses.count(200) < 600 and statuses.count(422) == 1000 - statuses.count(200)
    assert growth < 0.10, f"memory grew by {growth:.0%} from {before:.0f} MB"
    assert health["status"] == "ok" and health["waiting"] == 0
    assert health["batches"] < health["captions"]


def test_it_listens_on_this_machine_alone(server) -> None:
    address, _ = server
    port = int(address.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent; the system says which address it would use
            own = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError):
        socket.create_connection((own, port), timeout=3).close()
