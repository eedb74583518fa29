"""Whole datasets from bad servers: what comes is checked, killed runs go on, archives are not trusted."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from huggingface_hub import file_download

from helpers import download
from helpers.datasets import load_dataset, read_flickr8k
from helpers.download import fetch_file
from tests.bad_server import Page, serving
from tests.small_archives import DATA, error_of, extract_to, flickr8k_zip, packed, photo

ROOT = Path(__file__).parent.parent
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(file_download.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # ten million, where files are large
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture
def server():
    with serving() as server:
        yield server


def remote(name: str, url: str, hash: str | None = None, **more) -> dict:
    return {"name": name, "url": url, **({"hash": hash} if hash else {}), **more}


def source(server, *names: str) -> dict:
    return {"name": names[0], "files": [remote(name, server.url(f"/{name}")) for name in names]}


def fetch_dataset(name, folder, read, sources, expected=(6, 5)) -> Path:
    """Fetches with sources of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        entry = {"images": expected[0], "captions": expected[1], "sources": sources}
        patch.setitem(download.DATASETS, "flickr8k", entry)
        return download.fetch_dataset(name, folder, read)


# -- one file


def test_a_whole_file_and_then_no_second_request(server, tmp_path):
    server.pages["/a"] = Page(DATA)
    for _ in range(2):
        assert fetch_file(remote("a.zip", server.url("/a"), SHA256), tmp_path).read_bytes() == DATA
    assert server.asked == [("/a", None)] and os.listdir(tmp_path) == ["a.zip"]


def test_a_cut_line_is_resumed_by_range(server, tmp_path):
    server.pages["/a"] = Page(DATA, cuts=[100_000, 50_000, 0, 0, 1000])
    assert fetch_file(remote("a.zip", server.url("/a"), SHA256), tmp_path).read_bytes() == DATA
    ranges = [wanted for _, wanted in server.asked]
    assert ranges == [None, *(f"bytes={n}-" for n in (100_000, 150_000, 150_000, 150_000, 151_000))]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.pages["/a"] = Page(DATA, cuts=[100_000], ranges=False)
    assert fetch_file(remote("a", server.url("/a")), tmp_path).read_bytes() == DATA


def test_what_cannot_be_had_is_said(server, tmp_path):
    server.pages["/cut"] = Page(DATA, cuts=[1000] + [0] * 50)
    wanted = {server.url("/cut"): "kept", server.url("/gone"): "404", "http://127.0.0.1:9/a": ":9/a"}
    for address, words in wanted.items():
        assert words in error_of(fetch_file, remote(str(len(words)), address), tmp_path)
    server.pages["/cut"].cuts = []
    assert fetch_file(remote("4", server.url("/cut")), tmp_path).read_bytes() == DATA
    assert server.asked[-1] == ("/cut", "bytes=1000-")


def test_a_wrong_byte_or_another_version_is_set_aside(server, tmp_path):
    server.pages["/a"] = Page(DATA[::-1])
    for known in (SHA256, "md5:" + hashlib.md5(DATA).hexdigest()):
        assert "set aside as a.wrong" in error_of(fetch_file, remote("a", server.url("/a"), known), tmp_path)
        assert os.listdir(tmp_path) == ["a.wrong"]
    (tmp_path / "a").write_bytes(DATA)  # by hand
    assert fetch_file(remote("a", server.url("/a"), SHA256), tmp_path).read_bytes() == DATA


def test_a_full_disk_ends_with_one_message_and_keeps_the_part(server, tmp_path):
    server.pages["/a"] = Page(DATA)
    script = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
              "from pathlib import Path; from helpers.download import *\n"
              "try: fetch_file({'name': 'a', 'url': sys.argv[1]}, Path(sys.argv[2]))\n"
              "except CaptioningError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", script, server.url("/a"), tmp_path], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert "File too large. What has come so far is kept" in done.stdout, done.stderr
    assert fetch_file(remote("a", server.url("/a"), SHA256), tmp_path).read_bytes() == DATA


# -- whole datasets


def test_a_dataset_is_fetched_and_checked(server, tmp_path):
    server.pages["/f.zip"] = Page(flickr8k_zip(), cuts=[1000])
    sources = [source(server, "f.zip")]
    folder = fetch_dataset("flickr8k", tmp_path / "flickr8k", read_flickr8k, sources, (6, 5))
    assert sorted(os.listdir(folder)) == ["Images", "captions.txt"]
    work = tmp_path / "flickr8k.download"
    assert set(os.listdir(work)) <= {".lock"}
    asked = len(server.asked)
    assert fetch_dataset("flickr8k", folder, read_flickr8k, sources, (6, 5)) == folder
    assert len(server.asked) == asked


def test_sources_are_tried_in_turn_until_the_contents_are_right(server, tmp_path):
    damaged = bytearray(flickr8k_zip())
    damaged[damaged.index(photo(3)) + 200] ^= 1
    server.pages |= {"/page.zip": Page(b"<html>Please log in</html>"), "/damaged.zip": Page(bytes(damaged)),
                     "/few.zip": Page(flickr8k_zip(images=5)), "/four.zip": Page(flickr8k_zip(captions=4)),
                     "/evil.zip": Page(packed({"../captions.txt": b"x"})), "/good.zip": Page(flickr8k_zip())}
    sources = [source(server, f"{name}.zip") for name in ("none", "page", "damaged", "few", "four", "evil")]
    message = error_of(fetch_dataset, "flickr8k", tmp_path / "flickr8k", read_flickr8k, sources, (6, 5))
    for words in ("404", "page.zip is damaged or no zip", "damaged.zip is damaged", "5 images",
                  "4 captions", "leads out of the folder", "By hand:", server.url("/none.zip"), "data/README.md"):
        assert words in message, words
    assert os.listdir(tmp_path) == ["flickr8k.download"]
    assert set(os.listdir(tmp_path / "flickr8k.download")) <= {".lock", "none.zip.part"}  # nothing wrong is kept
    sources.append(source(server, "good.zip"))
    folder = fetch_dataset("flickr8k", tmp_path / "flickr8k", read_flickr8k, sources, (6, 5))
    assert len(read_flickr8k(folder).images()) == 6


def test_text_and_images_from_two_archives_and_an_optional_one_missing(server, tmp_path, capsys):
    images = {f"Flicker8k_Dataset/{n}.jpg": photo(n) for n in range(3)}
    text = {"Flickr8k.token.txt": "".join(f"{n}.jpg#{k}\tA dog {k} .\n" for n in range(3) for k in range(5)).encode()}
    text |= {f"Flickr_8k.{split}Images.txt": f"{n}.jpg\n".encode() for n, split in enumerate(("train", "dev", "test"))}
    server.pages["/i.zip"], server.pages["/t.zip"] = Page(packed(images)), Page(packed(text))
    files = (remote("i.zip", server.url("/i.zip")), remote("t.zip", server.url("/t.zip"), into="Flickr8k_text"),
             remote("extra.zip", server.url("/extra.zip"), optional=True))
    folder = fetch_dataset("flickr8k", tmp_path / "f", read_flickr8k, [{"name": "two", "files": files}], (3, 5))
    assert read_flickr8k(folder).images("dev") == ["1.jpg"]
    assert "extra.zip is left out" in capsys.readouterr().out


def test_offline_says_what_to_do_by_hand_and_takes_what_was_put_there(server, tmp_path, monkeypatch):
    nowhere = {"name": "nowhere", "files": [remote("f.zip", "http://127.0.0.1:9/f.zip")]}
    monkeypatch.setitem(download.DATASETS, "flickr8k", {"images": 6, "captions": 5, "sources": [nowhere]})
    message = error_of(load_dataset, "flickr8k", tmp_path / "flickr8k", download=True)
    assert "refused" in message and str(tmp_path / "flickr8k.download") in message
    (tmp_path / "flickr8k.download" / "f.zip").write_bytes(flickr8k_zip())
    assert len(load_dataset("flickr8k", tmp_path / "flickr8k", download=True).images()) == 6


FETCH = """
import sys
from huggingface_hub import file_download
from helpers import download
from helpers.datasets import read_flickr8k
file_download.constants.DOWNLOAD_CHUNK_SIZE = 4096
sources = [{"name": "s", "files": [{"name": "f.zip", "url": sys.argv[1]}]}]
download.DATASETS["flickr8k"] = {"images": 40, "captions": 5, "sources": sources}
download.fetch_dataset("flickr8k", sys.argv[2], read_flickr8k)
"""


def start_fetching(server, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH, server.url("/f.zip"), str(folder)], cwd=ROOT,
                            env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "0"})


def test_a_killed_download_goes_on_and_two_at_once_download_once(server, tmp_path):
    server.pages["/f.zip"] = Page(flickr8k_zip(images=200), delay=0.05)
    process = start_fetching(server, tmp_path / "flickr8k")
    while not server.asked and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "flickr8k").exists()
    both = [start_fetching(server, tmp_path / "flickr8k") for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(read_flickr8k(tmp_path / "flickr8k").images()) == 200
    assert len(server.asked) == 2 and int(server.asked[1][1][6:-1]) > 0  # went on where it was killed, and once
    assert sorted(os.listdir(tmp_path)) == ["flickr8k", "flickr8k.download"]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    import huggingface_hub

    image = {"bytes": photo(), "path": "any.jpg"}
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for stem, row in (("train-00000-of-00001", {"caption_0": "A dog,\n 0", "caption_1": "two"}),
                      ("rest", {"split": "val", "filename": "../../evil.jpg", "caption": ["one", "two"]})):
        pd.DataFrame([{"image": image, **row}]).to_parquet(tmp_path / "hub" / "data" / f"{stem}.parquet")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "hub"))
    hub = [{"name": "hub", "repository": "someone/flickr8k"}]
    folder = fetch_dataset("flickr8k", tmp_path / "flickr8k", read_flickr8k, hub, (2, 2))
    dataset = read_flickr8k(folder)
    assert list(dataset.references("train").values()) == [["A dog, 0", "two"]]
    assert dataset.references("dev") == {"evil.jpg": ["one", "two"]}

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "the hub: no route" in error_of(fetch_dataset, "flickr8k", tmp_path / "x", read_flickr8k, hub)


def test_the_registry_names_what_it_should():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for entry in download.DATASETS.values():
        for one in entry["sources"]:
            assert one["name"].split()[-1] in text and ("repository" in one) != ("files" in one)
            for file in one.get("files", ()):
                assert file["url"].startswith(("https://", "http://images.cocodataset.org"))
                assert file["hash"].startswith("md5:") and len(file["hash"]) == 36


# -- archives


def lying_zip() -> bytes:
    """A zip whose directory says that 30 MB of zeros are one kilobyte."""
    data = bytearray(packed({"a.txt": bytes(30_000_000)}, zipfile.ZIP_DEFLATED))
    place = data.index(b"PK\x01\x02") + 24
    data[place:place + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


HOSTILE = {
    "zip ..": lambda: packed({"good.txt": b"x", "../evil.txt": b"x"}),
    "zip absolute": lambda: packed({"/tmp/evil.txt": b"x"}),
    "zip backslash": lambda: packed({"..\\evil.txt": b"x"}),
    "zip drive": lambda: packed({"C:\\evil.txt": b"x"}),
    "zip bomb": lambda: packed({"a.txt": bytes(30_000_000)}, zipfile.ZIP_DEFLATED),
    "zip liar": lying_zip,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_and_write_nothing_outside(tmp_path, kind):
    message = error_of(extract_to, HOSTILE[kind](), tmp_path / "in" / "folder")
    assert "is refused" in message or "is damaged" in message
    written = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "folder.archive"}
    assert written <= {"a.txt", "a", "good.txt"} and not Path("/tmp/evil.txt").exists()
    assert sum(path.stat().st_size for path in (tmp_path / "in" / "folder").rglob("*")) < 12_000_000


def test_damaged_archives_are_noticed(tmp_path):
    good = flickr8k_zip()
    for number, length in enumerate(range(0, len(good), len(good) // 12)):
        assert "is damaged" in error_of(extract_to, good[:length], tmp_path / f"cut{number}")
