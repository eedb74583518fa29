"""The same files at every door: what one takes all take, and what one refuses all refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import app
import generate_caption
import serve
from helpers.captioner import Captioner
from helpers.datasets import dataset_report, load_dataset
from helpers.encoders import cache_features
from helpers.files import CaptioningError
from tests.nasty_images import make_corpus
from tests.test_captioner import write
from tests.test_features import Tiny
from tests.test_labelling import SPACE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[Path, bool]:
    """Forty files or more, and whether each is a photo; names that a CSV or a form cannot hold are left out."""
    outcomes = make_corpus(tmp_path_factory.mktemp("doors"))
    known = {path: outcome == "image" for path, outcome in outcomes.items() if outcome != "either"}
    return {path: good for path, good in known.items() if path.is_file() and path.name.isprintable()}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("toy") / "toy")


def by_python(paths: list[Path], toy: Path) -> set[str]:
    captions = Captioner.load(toy).caption(paths, method="greedy", max_length=2)
    return {Path(caption.image).name for caption in captions if caption.error is None}


def by_command_line(paths: list[Path], toy: Path, capsys) -> set[str]:
    options = ["--checkpoint", toy, "--json", "--device", "cpu", "--beam_size", "1", "--max_length", "2"]
    generate_caption.main([*map(str, options), "--image_path", *map(str, paths)])
    return {Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()}


def by_page(paths: list[Path], toy: Path, monkeypatch) -> set[str]:
    """What the page's own function makes of uploaded files, which are open files with a name."""
    session = type("Session", (dict,), {"__setattr__": dict.__setitem__})()
    monkeypatch.setattr(app.st, "session_state", session)
    items = {}
    for path in paths:
        items[path.name] = io.BytesIO(path.read_bytes())
        items[path.name].name = path.name
    results = app.caption_all(items, str(toy), {"beam_size": 1, "max_length": 2})
    return {name for name, (_, caption) in zip(items, results, strict=True) if caption.error is None}


def by_service(paths: list[Path], toy: Path) -> set[str]:
    found = set()
    with TestClient(serve.make_app(Captioner.load(toy))) as client:
        for path in paths:
            form = [("images", (path.name, path.read_bytes(), "application/octet-stream"))]
            (entry,) = client.post("/caption", files=form, data={"beam_size": 1, "max_length": 2}).json()
            if entry["caption"] is not None:
                found.add(path.name)
    return found


def by_labelling_cell(paths: list[Path]) -> set[str]:
    found = set()
    for path in paths:
        try:
            found.add(SPACE["jpeg"](path) and path.name)
        except CaptioningError:
            continue
    return found


def test_every_door_gives_the_same_verdict(corpus, toy, tmp_path, capsys, monkeypatch) -> None:
    paths = list(corpus)
    right = {path.name for path, good in corpus.items() if good}
    assert len(paths) >= 40 and len(right) >= 15
    assert by_python(paths, toy) == right
    assert by_command_line(paths, toy, capsys) == right
    assert by_page(paths, toy, monkeypatch) == right
    assert by_service(paths, toy) == right
    assert by_labelling_cell(paths) == right
    rows = "".join(f'"{path.name}",a dog\n' for path in paths)
    (paths[0].parent / "captions.csv").write_text(f"image,caption\n{rows}", encoding="utf-8")
    dataset = load_dataset("folder", paths[0].parent)  # as notebook 09 does
    findings = dataset_report(dataset).findings
    assert {path.name for path in paths} - set(findings[findings.kind == "unreadable"].image) == right
    assert set(cache_features(Tiny(), dataset, folder=tmp_path / "features").names) == right
