"""The HTTP service: equal to the command line, good and bad requests, one caption after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import generate_caption
import serve
from generate_caption import OPTIONS
from helpers.captioner import Captioner
from tests.nasty_images import make_corpus
from tests.test_captioner import write

INSIDE = ("Traceback", 'File "', "/helpers/", "/work", "/home", "/tmp")
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A checkpoint of an untrained model, quick to load and to decode."""
    return write(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def client(toy):
    with TestClient(serve.make_app(Captioner.load(toy)), raise_server_exceptions=False) as made:
        yield made


def files(*photos: tuple[str, bytes] | Path) -> list:
    """Returns photos as the client takes files."""
    pairs = [(photo.name, photo.read_bytes()) if isinstance(photo, Path) else photo for photo in photos]
    return [("images", (name, data, "application/octet-stream")) for name, data in pairs]


def from_command_line(capsys, *arguments: object) -> list[dict]:
    """Returns what `generate_caption.py --json` prints, names without their folders."""
    capsys.readouterr()
    generate_caption.main([*map(str, arguments), "--json", "--device", "cpu"])
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [entry | {"image": Path(entry["image"]).name} for entry in entries]


@pytest.mark.parametrize(
    "options",
    [{}, {"beam_size": 2, "length_penalty": 0.2}, {"top_k": 4, "temperature": 1.3, "seed": 8}, {"prompt": "the dog"}],
)  # fmt: skip
def test_captions_equal_those_of_the_command_line(client, toy, samples, capsys, options) -> None:
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    expected = from_command_line(capsys, "--checkpoint", toy, *given, "--image_path", *samples[:3])
    answer = client.post("/caption", files=files(*samples[:3]), data=options)
    assert answer.status_code == 200 and len(expected) == 3
    assert answer.json() == expected


def test_every_nasty_file_gets_a_caption_or_one_message(client, tmp_path) -> None:
    corpus = {path: outcome for path, outcome in make_corpus(tmp_path / "corpus").items() if path.is_file()}
    paths = list(corpus)
    for start in range(0, len(paths), serve.PHOTOS):
        some = paths[start : start + serve.PHOTOS]
        answer = client.post("/caption", files=files(*((f"{n}.jpg", path.read_bytes()) for n, path in enumerate(some))))
        assert not [word for word in INSIDE if word in answer.text]
        for path, entry in zip(some, answer.json(), strict=True):
            assert corpus[path] == "either" or (entry["caption"] is not None) == (corpus[path] == "image"), path
            assert entry["caption"] is not None or entry["error"].isprintable()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"beam_size": "many"}, "beam_size"), ({"temperature": "nan"}, "temperature"),
     ({"prompt": "zeppelin"}, "does not know 'zeppelin'"), ({"beam_size": "3", "top_k": "2"}, "choose"),
     ({"beamsize": "3"}, "Unknown field 'beamsize'")],
)  # fmt: skip
def test_wrong_fields_are_named(client, samples, fields, message) -> None:
    answer = client.post("/caption", files=files(samples[0]), data=fields)
    assert answer.status_code == 422 and message in json.dumps(answer.json()["detail"])


def test_too_many_and_too_large(client, samples, monkeypatch) -> None:
    assert client.post("/caption", files=files(*[samples[0]] * 21)).status_code == 413
    monkeypatch.setattr(serve, "PHOTO_BYTES", 1000)
    answer = client.post("/caption", files=files(samples[0]))
    assert answer.status_code == 413 and "smaller copy" in answer.json()["detail"]


def test_a_failure_inside_stays_inside(client, samples, monkeypatch) -> None:
    def fail(*arguments, **options):
        raise RuntimeError("secret")

    monkeypatch.setattr(Captioner, "caption", fail)
    answer = client.post("/caption", files=files(samples[0]))
    assert answer.status_code == 500 and "secret" not in answer.text
    monkeypatch.undo()
    assert client.post("/caption", files=files(samples[0])).status_code == 200


def test_health_and_description(client) -> None:
    assert client.get("/health").json() == {"status": "ok", "model": "toy"}
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    assert schema["paths"].keys() == {"/caption", "/health"}
    (form,) = (body for name, body in schema["components"]["schemas"].items() if name.startswith("Body"))
    assert {*form["properties"]} == {*serve.FIELDS} == {"images", "seed", *OPTIONS}


def test_it_listens_on_this_machine_alone_and_refuses_a_bad_checkpoint(tmp_path, capsys) -> None:
    assert serve.parser().parse_args([]).host == "127.0.0.1"
    assert serve.main(["--checkpoint", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
