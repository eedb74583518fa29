"""Fetching a file from a server that cuts the line, alters a byte, answers 404 or lies."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import download as fetch
from helpers.download import RemoteFile, fetch_file
from tests.bad_server import Page, serving
from tests.small_archives import DATA, error_of

ROOT = Path(__file__).parent.parent
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0)
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture
def server():
    with serving() as server:
        yield server


def test_a_whole_file_and_then_no_second_request(server, tmp_path):
    server.pages["/a"] = Page(DATA)
    file = RemoteFile("a.zip", (server.url("/a"),), size=len(DATA), hash=SHA256)
    for _ in range(2):
        assert fetch_file(file, tmp_path).read_bytes() == DATA
    assert server.asked == [("/a", None)]
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_cut_line_is_resumed_by_range(server, tmp_path, etag):
    server.pages["/a"] = Page(DATA, cuts=[100_000, 50_000, 0, 0, 1], etag=etag)
    file = RemoteFile("a.zip", (server.url("/a"),), hash=SHA256)
    assert fetch_file(file, tmp_path).read_bytes() == DATA
    ranges = [wanted for _, wanted in server.asked]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150000-", "bytes=150001-"]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.pages["/a"] = Page(DATA, cuts=[100_000], ranges=False)
    assert fetch_file(RemoteFile("a", (server.url("/a"),)), tmp_path).read_bytes() == DATA
    assert len(server.asked) == 2


def test_a_line_that_is_always_cut_gives_way_to_the_next_mirror(server, tmp_path):
    server.pages["/a"] = Page(DATA, cuts=[1000] + [0] * 50)
    server.pages["/b"] = Page(DATA)
    file = RemoteFile("a", (server.url("/a"), server.url("/b")))
    assert fetch_file(file, tmp_path).read_bytes() == DATA
    assert [path for path, _ in server.asked] == ["/a"] * (1 + fetch.TRIES) + ["/b"]
    assert server.asked[-1] == ("/b", None)  # another address: not continued


@pytest.mark.parametrize("status", [404, 403, 410])
def test_not_found_gives_way_to_the_next_mirror_at_once(server, tmp_path, status):
    server.pages["/a"] = Page(DATA, status=[status] * 9)
    server.pages["/b"] = Page(DATA)
    assert fetch_file(RemoteFile("a", (server.url("/a"), server.url("/b"))), tmp_path).read_bytes() == DATA
    assert [path for path, _ in server.asked] == ["/a", "/b"]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.pages["/a"] = Page(DATA, status=[503, 429])
    assert fetch_file(RemoteFile("a", (server.url("/a"),)), tmp_path).read_bytes() == DATA
    assert len(server.asked) == 3


def test_a_wrong_byte_gives_way_to_the_next_mirror(server, tmp_path):
    wrong = bytearray(DATA)
    wrong[150_000] ^= 1
    server.pages["/a"], server.pages["/b"] = Page(bytes(wrong)), Page(DATA)
    md5 = "md5:" + hashlib.md5(DATA).hexdigest()
    for known in (SHA256, md5):
        file = RemoteFile("a", (server.url("/a"), server.url("/b")), hash=known)
        path = fetch_file(file, tmp_path / known[:3])
        assert path.read_bytes() == DATA
    message = error_of(fetch_file, RemoteFile("a", (server.url("/a"),), hash=SHA256), tmp_path / "none")
    assert "has the wrong sha256" in message and SHA256[7:] in message
    assert os.listdir(tmp_path / "none") == []


def test_a_wrong_size_is_refused_before_the_download(server, tmp_path):
    server.pages["/a"] = Page(DATA)
    message = error_of(fetch_file, RemoteFile("a", (server.url("/a"),), size=299_999), tmp_path)
    assert "has 300,000 bytes instead of 299,999" in message
    assert not (tmp_path / "a.part").exists()


def test_a_server_that_sends_more_than_it_announced(server, tmp_path):
    server.pages["/a"] = Page(DATA, announced=100_000, etag=None)
    path = fetch_file(RemoteFile("a", (server.url("/a"),)), tmp_path)
    assert path.stat().st_size == 100_000  # HTTP: what follows is not of this answer
    assert "bytes instead of" in error_of(fetch_file, RemoteFile("b", (server.url("/a"),), size=300_000), tmp_path)


def test_the_first_sha256_is_pinned(server, tmp_path):
    server.pages["/a"] = Page(DATA[::-1])
    file = RemoteFile("a", (server.url("/a"),))
    assert "differs from what was downloaded the first time" in error_of(fetch_file, file, tmp_path, SHA256[7:])
    server.pages["/a"] = Page(DATA)
    assert fetch_file(file, tmp_path, SHA256[7:]).read_bytes() == DATA


def test_a_part_of_an_older_version_is_not_continued(server, tmp_path):
    server.pages["/a"] = Page(DATA[::-1], cuts=[100_000] + [0] * 9, etag='"old"')
    file = RemoteFile("a", (server.url("/a"),), hash=SHA256)
    assert "breaks off" in error_of(fetch_file, file, tmp_path)
    assert (tmp_path / "a.part").stat().st_size == 100_000
    server.pages["/a"] = Page(DATA, etag='"new"')  # If-Range does not match: the server sends the whole file
    assert fetch_file(file, tmp_path).read_bytes() == DATA
    server.pages["/b"] = Page(DATA[::-1], cuts=[100_000] + [0] * 9, etag=None)  # no way to notice but the hash
    file = RemoteFile("b", (server.url("/b"),), hash=SHA256)
    error_of(fetch_file, file, tmp_path)
    server.pages["/b"] = Page(DATA, etag=None)
    assert fetch_file(file, tmp_path).read_bytes() == DATA


def test_a_file_put_there_by_hand_is_checked(server, tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    file = RemoteFile("a", (server.url("/nowhere"),), hash=SHA256)
    assert fetch_file(file, tmp_path).read_bytes() == DATA and server.asked == []
    (tmp_path / "a").write_bytes(DATA[:-1])
    message = error_of(fetch_file, file, tmp_path)
    assert "set aside as a.wrong" in message and "404" in message


def test_offline_and_other_schemes(tmp_path):
    message = error_of(fetch_file, RemoteFile("a", ("http://127.0.0.1:9/a", "file:///etc/passwd")), tmp_path)
    assert "cannot be reached" in message and "is no web address" in message


def test_a_full_disk_ends_with_one_message_and_keeps_the_part(server, tmp_path):
    server.pages["/a"] = Page(DATA)
    script = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
              "from pathlib import Path; from helpers.fetch import *; from helpers.errors import *\n"
              "try: fetch_file(RemoteFile('a', (sys.argv[1],)), Path(sys.argv[2]))\n"
              "except CaptioningError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", script, server.url("/a"), tmp_path], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert "cannot write" in done.stdout and "File too large" in done.stdout
    assert fetch_file(RemoteFile("a", (server.url("/a"),)), tmp_path).read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-"]
