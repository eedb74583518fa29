"""Archives that mean harm, are damaged, come in parts, or are just archives."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers import download as archives
from helpers.download import Joined
from tests.small_archives import DATA, error_of, extract_to, flickr8k_zip, packed


def tarred(member: tarfile.TarInfo | str, data: bytes = b"", mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo(member) if isinstance(member, str) else member
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def zip_link(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.create_system = 3
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    return buffer.getvalue()


def encrypted() -> bytes:
    data = bytearray(packed({"a.txt": b"x"}))
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= 1
    return bytes(data)


def lying_zip() -> bytes:
    """A zip whose directory says that 30 MB of zeros are one kilobyte."""
    data = bytearray(packed({"a.txt": bytes(30_000_000)}, zipfile.ZIP_DEFLATED))
    place = data.index(b"PK\x01\x02") + 24
    data[place:place + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


def nameless() -> bytes:
    """A zip with an entry whose name is empty, on which zipfile itself raises IndexError (found by fuzzing)."""
    data = packed({"a": b"x"}).replace(b"\x01\x00\x00\x00a", b"\x00\x00\x00\x00")
    directory = data.index(b"PK\x01\x02")
    data = bytearray(data.replace(b"a", b""))
    data[directory + 28] = 0
    end = data.index(b"PK\x05\x06")
    data[end + 12] -= 1
    return bytes(data)


HOSTILE = {
    "zip nameless": nameless,
    "zip ..": lambda: packed({"good.txt": b"x", "../evil.txt": b"x"}),
    "zip absolute": lambda: packed({"/tmp/evil.txt": b"x"}),
    "zip backslash": lambda: packed({"..\\evil.txt": b"x"}),
    "zip drive": lambda: packed({"C:\\evil.txt": b"x"}),
    "zip deep ..": lambda: packed({"a/b/../../../evil.txt": b"x"}),
    "zip link": lambda: zip_link("link"),
    "zip encrypted": encrypted,
    "zip bomb": lambda: packed({"a.txt": bytes(30_000_000)}, zipfile.ZIP_DEFLATED),
    "zip liar": lying_zip,
    "tar ..": lambda: tarred("../evil.txt", b"x"),
    "tar absolute": lambda: tarred("/tmp/evil.txt", b"x"),
    "tar symlink": lambda: tarred(special("l", tarfile.SYMTYPE, "/etc")),
    "tar link": lambda: tarred(special("l", tarfile.LNKTYPE, "a")),
    "tar device": lambda: tarred(special("d", tarfile.CHRTYPE)),
    "tar fifo": lambda: tarred(special("f", tarfile.FIFOTYPE)),
    "tar bomb": lambda: tarred("a", bytes(30_000_000)),
    "tar long header": lambda: tarred("x" * 12_000_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_and_write_nothing_outside(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archives, "MAX_HEADERS", 1_000_000)
    message = error_of(extract_to, HOSTILE[kind](), tmp_path / "in" / "folder")
    assert "is refused" in message or "is damaged" in message
    written = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "folder.archive"}
    assert written <= {"a.txt", "a"} and not Path("/tmp/evil.txt").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert sum(path.stat().st_size for path in (tmp_path / "in" / "folder").rglob("*")) < 12_000_000


def test_repeated_names_and_too_many_bytes_are_refused(tmp_path, recwarn):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "one")
        archive.writestr("a.txt", "two")
    assert "twice" in error_of(extract_to, buffer.getvalue(), tmp_path / "a")
    assert "twice" in error_of(extract_to, packed({"a": b"x", "a/b": b"y"}), tmp_path / "b")
    assert "far more" in error_of(extract_to, packed({"a": bytes(1001)}), tmp_path / "c", max_bytes=1000)
    assert extract_to(packed({"a": bytes(1000)}), tmp_path / "d", max_bytes=1000) == 1
    # a tar has no directory that tells the sizes beforehand: they are counted while it is unpacked
    assert "far more" in error_of(extract_to, tarred("a", bytes(1001)), tmp_path / "e", max_bytes=1000)
    assert sum(path.stat().st_size for path in (tmp_path / "e").rglob("*")) <= 1000
    assert extract_to(tarred("a", bytes(1000)), tmp_path / "f", max_bytes=1000) == 1


def test_damaged_archives_are_noticed(tmp_path):
    good = flickr8k_zip()
    for number, length in enumerate(range(0, len(good), len(good) // 12)):
        assert "is damaged" in error_of(extract_to, good[:length], tmp_path / f"cut{number}")
    packed_tar = tarred("a.txt", DATA)
    altered = bytearray(packed_tar)
    altered[len(altered) // 2] ^= 0xFF
    assert "is damaged" in error_of(extract_to, bytes(altered), tmp_path / "altered")
    assert "is damaged" in error_of(extract_to, packed_tar[:-2000], tmp_path / "short")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_archives_are_unpacked(tmp_path, mode):
    assert extract_to(tarred("./a/b.txt", DATA, mode), tmp_path / "t") == 1
    assert (tmp_path / "t" / "a" / "b.txt").read_bytes() == DATA


def test_joined_files_read_as_one(tmp_path):
    paths = [tmp_path / str(n) for n in range(4)]
    for path, data in zip(paths, (b"abc", b"", b"defgh", b"i"), strict=True):
        path.write_bytes(data)
    with io.BufferedReader(Joined(paths), 2) as file:
        assert file.read() == b"abcdefghi"
        for start in range(10):
            file.seek(start)
            assert file.read(3) == b"abcdefghi"[start:start + 3]
        file.seek(-2, io.SEEK_END)
        assert (file.tell(), file.read()) == (7, b"hi")
