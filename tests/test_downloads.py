"""Whole datasets from bad mirrors: the next is tried, what comes is checked, killed runs go on, two wait in turn."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from helpers import download as fetch
from helpers import download as mirrors
from helpers.datasets import load_dataset, read_flickr8k, read_flickr30k
from helpers.download import RemoteFile, Source, fetch_dataset, write_rows
from helpers.files import CaptioningError
from tests.bad_server import Page, serving
from tests.small_archives import error_of, extract_to, flickr8k_zip, packed, photo

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture
def server():
    with serving() as server:
        yield server


def source(server, *names: str, **options) -> Source:
    return Source(names[0], tuple(RemoteFile(name, (server.url(f"/{name}"),)) for name in names), **options)


@pytest.mark.parametrize("outer", ["", "flickr8k/", "a/b/"])
def test_a_dataset_is_fetched_checked_and_pinned(server, tmp_path, outer):
    server.pages["/f.zip"] = Page(data := flickr8k_zip(outer=outer), cuts=[1000])
    folder = fetch_dataset("flickr8k", tmp_path / "flickr8k", [source(server, "f.zip")], (6, 5))
    assert sorted(os.listdir(folder)) == ["Images", "captions.txt"]
    assert len(load_dataset("flickr8k", folder, download=True).images()) == 6
    work = tmp_path / "flickr8k.download"
    assert json.loads((work / "sha256.json").read_text()) == {"f.zip": hashlib.sha256(data).hexdigest()}
    assert sorted(os.listdir(tmp_path)) == ["flickr8k", "flickr8k.download"]
    assert set(os.listdir(work)) == {".lock", "sha256.json"}
    asked = len(server.asked)
    assert fetch_dataset("flickr8k", folder, [source(server, "f.zip")], (6, 5)) == folder
    assert len(server.asked) == asked


def test_sources_are_tried_in_turn_until_the_contents_are_right(server, tmp_path):
    damaged = bytearray(flickr8k_zip())
    damaged[damaged.index(photo(3)) + 200] ^= 1
    server.pages |= {"/page.zip": Page(b"<html>Please log in</html>"), "/damaged.zip": Page(bytes(damaged)),
                     "/few.zip": Page(flickr8k_zip(images=5)), "/four.zip": Page(flickr8k_zip(captions=4)),
                     "/evil.zip": Page(packed({"../captions.txt": b"x"})), "/good.zip": Page(flickr8k_zip())}

    def fails(folder):
        raise CaptioningError("needs the package kagglehub")

    names = ("none", "page", "damaged", "few", "four", "evil")
    sources = [source(server, f"{name}.zip") for name in names]
    sources.append(Source("Kaggle", call=fails))
    message = error_of(fetch_dataset, "flickr8k", tmp_path / "flickr8k", sources, (6, 5))
    for words in ("none.zip answers 404", "page.zip is damaged or no zip", "damaged.zip is damaged", "5 images",
                  "4 captions", "leads out of the folder", "needs the package kagglehub", "By hand:",
                  server.url("/none.zip")):
        assert words in message, words
    assert os.listdir(tmp_path) == ["flickr8k.download"]
    assert set(os.listdir(tmp_path / "flickr8k.download")) == {".lock"}  # nothing that was wrong is kept
    folder = fetch_dataset("flickr8k", tmp_path / "flickr8k", [*sources, source(server, "good.zip")], (6, 5))
    assert len(read_flickr8k(folder).images()) == 6


def test_text_and_images_from_two_archives_and_an_optional_one_missing(server, tmp_path, capsys):
    images = {f"Flicker8k_Dataset/{n}.jpg": photo(n) for n in range(3)}
    text = {"Flickr8k.token.txt": "".join(f"{n}.jpg#{k}\tA dog {k} .\n" for n in range(3) for k in range(5)).encode()}
    text |= {f"Flickr_8k.{split}Images.txt": f"{n}.jpg\n".encode() for n, split in enumerate(("train", "dev", "test"))}
    server.pages["/i.zip"], server.pages["/t.zip"] = Page(packed(images)), Page(packed(text))
    files = (RemoteFile("i.zip", (server.url("/i.zip"),)),
             RemoteFile("t.zip", (server.url("/t.zip"),), into="Flickr8k_text"),
             RemoteFile("extra.zip", (server.url("/extra.zip"),), optional=True))
    folder = fetch_dataset("flickr8k", tmp_path / "f", [Source("two", files)], (3, 5))
    assert read_flickr8k(folder).images("dev") == ["1.jpg"]
    assert "extra.zip is left out" in capsys.readouterr().out


def test_an_archive_in_parts(server, tmp_path):
    captions = "image_name,comment_number,comment\n" + "".join(f"{n}.jpg,{k},A dog , {k} .\n".replace(" , ", " ")
                                                              for n in range(4) for k in range(5))
    whole = packed({"Images/" + f"{n}.jpg": photo(n) for n in range(4)} | {"captions.txt": captions.encode()})
    for number in range(3):
        third = len(whole) // 3 + 1
        server.pages[f"/part{number}"] = Page(whole[number * third:(number + 1) * third])
    karpathy = {"images": [{"filename": f"{n}.jpg", "split": split} for n, split in
                           enumerate(("train", "train", "val", "test"))]}
    server.pages["/k.zip"] = Page(packed({"dataset_flickr30k.json": json.dumps(karpathy).encode()}))
    files = tuple(RemoteFile(f"part{n}", (server.url(f"/part{n}"),)) for n in range(3))
    extra = RemoteFile("k.zip", (server.url("/k.zip"),), optional=True)
    folder = fetch_dataset("flickr30k", tmp_path / "f", [Source("parts", (*files, extra), joined=True)], (4, 5))
    assert [len(read_flickr30k(folder).images(split)) for split in ("train", "dev", "test")] == [2, 1, 1]


def test_a_pinned_archive_that_changes_is_refused(server, tmp_path):
    server.pages["/f.zip"] = Page(flickr8k_zip())
    folder = fetch_dataset("flickr8k", tmp_path / "f", [source(server, "f.zip")], (6, 5))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    server.pages["/f.zip"] = Page(flickr8k_zip(images=7))
    message = error_of(fetch_dataset, "flickr8k", folder, [source(server, "f.zip")], (6, 5))
    assert "differs from what was downloaded the first time" in message


def test_offline_says_what_to_do_by_hand_and_takes_what_was_put_there(server, tmp_path, monkeypatch):
    nowhere = Source("nowhere", (RemoteFile("f.zip", ("http://127.0.0.1:9/f.zip",)),))
    monkeypatch.setitem(mirrors.SOURCES, "flickr8k", (nowhere,))
    monkeypatch.setitem(mirrors.EXPECTED, "flickr8k", (6, 5))
    message = error_of(load_dataset, "flickr8k", tmp_path / "flickr8k", download=True)
    assert "no connection to the internet" in message and "http://127.0.0.1:9/f.zip" in message
    assert str(tmp_path / "flickr8k.download") in message and "data/README.md" in message
    (tmp_path / "flickr8k.download" / "f.zip").write_bytes(flickr8k_zip())
    assert len(load_dataset("flickr8k", tmp_path / "flickr8k", download=True).images()) == 6
    assert server.asked == []


def test_too_little_room_is_said_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setitem(mirrors.DISK, "coco", 1e18)
    assert "needs 1000000000.0 GB" in error_of(fetch_dataset, "coco", tmp_path / "coco")
    assert "Did you mean 'coco'" in error_of(fetch_dataset, "cocoa", tmp_path / "coco")


FETCH = """
import json, sys
from helpers import fetch
from helpers.downloads import fetch_dataset
from helpers.mirrors import RemoteFile, Source
fetch_dataset("flickr8k", sys.argv[2], [Source("s", (RemoteFile("f.zip", (sys.argv[1],)),))], (40, 5))
"""


def start_fetching(server, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH, server.url("/f.zip"), str(folder)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TQDM_DISABLE": "1"})


def test_killed_again_and_again_a_download_still_ends_whole(server, tmp_path):
    data = flickr8k_zip(images=200)
    folder = tmp_path / "flickr8k"
    server.pages["/f.zip"] = Page(data, delay=0.02)
    generator = random.Random(1)
    for _ in range(4):
        asked = len(server.asked)
        process = start_fetching(server, folder)
        while len(server.asked) == asked and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not folder.exists()
    server.pages["/f.zip"].delay = 0
    process = start_fetching(server, folder)
    assert process.wait(60) == 0, process.stdout.read()
    assert len(read_flickr8k(folder).images()) == 200
    resumed = [int(wanted[6:-1]) for _, wanted in server.asked if wanted]
    assert resumed == sorted(resumed) and resumed[-1] > 0  # each run went on where the one before was killed
    assert sorted(os.listdir(tmp_path)) == ["flickr8k", "flickr8k.download"]


def test_two_at_once_download_once(server, tmp_path):
    server.pages["/f.zip"] = Page(flickr8k_zip(images=60), delay=0.02)
    processes = [start_fetching(server, tmp_path / "flickr8k") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert server.asked == [("/f.zip", None)]
    assert len(read_flickr8k(tmp_path / "flickr8k").images()) == 60


# Kaggle and the Hub


def test_rows_of_the_hub_become_kaggles_layout(tmp_path):
    captions = {f"caption_{k}": f"A dog,\n {k}" for k in range(11)}
    numbered = [{"image": {"bytes": photo(n), "path": f"{n}.jpg"}, **captions} for n in range(2)]
    listed = [{"image": {"bytes": photo(), "path": None}, "caption": ["one", "two"]},
              {"image": {"bytes": photo(), "path": "../../evil.jpg"}, "caption": "three"},
              {"image": {"bytes": photo(), "path": "x"}, "filename": "0.jpg", "caption": ["four"]}]
    write_rows({"train": numbered, "validation": listed}, tmp_path / "a")
    dataset = read_flickr8k(tmp_path / "a")
    assert dataset.references("train") == {f"{n}.jpg": [f"A dog, {k}" for k in range(11)] for n in range(2)}
    assert dataset.references("dev") == {"validation_00000.jpg": ["one", "two"], "evil.jpg": ["three"],
                                         "validation_00002.jpg": ["four"]}
    assert not (tmp_path / "evil.jpg").exists()
    rows = [{"image": {"bytes": photo()}, "caption": ["x"], "split": split, "filename": f"{split}.jpg"}
            for split in ("train", "val", "test")]
    write_rows({"test": rows}, tmp_path / "b")  # Flickr30k on the Hub: one split, and a column that names the real one
    assert read_flickr8k(tmp_path / "b").images("dev") == ["val.jpg"]
    assert "row 0" in error_of(write_rows, {"train": [{"image": {"bytes": b""}, "caption": ["x"]}]}, tmp_path / "c")


def test_hub_and_kaggle_by_their_packages(tmp_path, monkeypatch):
    class Rows(list):
        def cast_column(self, column, feature):
            assert (column, feature) == ("image", ("undecoded", False))
            return self

    def load(repository, revision):
        if repository == "no/such":
            raise ConnectionError("offline")
        return {"train": Rows([{"image": {"bytes": photo()}, "caption_0": f"{repository} {revision}"}])}

    hub = types.SimpleNamespace(load_dataset=load, Image=lambda decode: ("undecoded", decode))
    monkeypatch.setitem(sys.modules, "datasets", hub)
    mirrors.from_hugging_face("intro/flickr8k", tmp_path / "hub")
    assert read_flickr8k(tmp_path / "hub").captions() == ["intro/flickr8k None"]
    assert "datasets: offline" in error_of(mirrors.from_hugging_face, "no/such", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in error_of(mirrors.from_hugging_face, "intro/flickr8k", tmp_path / "y")

    extract_to(flickr8k_zip(), tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=lambda n: tmp_path / "cache"))
    folder = fetch_dataset("flickr8k", tmp_path / "k", [mirrors._kaggle("adityajn105/flickr8k")], (6, 5))
    assert len(read_flickr8k(folder).images()) == 6 and (tmp_path / "cache" / "captions.txt").is_file()
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "pip install kagglehub" in error_of(mirrors.from_kaggle, "a/b", tmp_path / "z")


def test_the_registry_names_what_it_should():
    assert set(mirrors.SOURCES) == set(mirrors.EXPECTED) == set(mirrors.DISK)
    files = [file for sources in mirrors.SOURCES.values() for one in sources for file in one.files]
    for file in files:
        assert file.urls and all(url.startswith(("https://", "http://images.cocodataset.org")) for url in file.urls)
        algorithm, _, digest = (file.hash or "md5:" + "0" * 32).partition(":")
        assert len(digest) == {"md5": 32, "sha256": 64}[algorithm] and set(digest) <= set("0123456789abcdef")
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert all(one.name.split()[-1] in text for sources in mirrors.SOURCES.values() for one in sources)
