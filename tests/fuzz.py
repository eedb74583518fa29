"""Coverage-guided fuzzing of the image door and the caption-file readers, for a bounded time.

    pip install atheris                      # Linux and macOS; Python 3.11 to 3.13
    python tests/fuzz.py images 60           # seconds; or: tokens, csv, pipes, list, coco, karpathy, archive

Whatever the bytes, the only exception that may come out is CaptioningError, in bounded time. An input that breaks this
is left in the current folder as `crash-*`, `timeout-*` or `oom-*`; each one found became a case in the tests.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import atheris

with atheris.instrument_imports(include=["helpers", "PIL", "csv", "json", "tarfile", "zipfile"]):
    from helpers import caption_files
    from helpers.caption_files import Faults
    from helpers.download import extract
    from helpers.files import CaptioningError
    from helpers.images import open_image

from tests import nasty_images as nasty

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz.", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
TEXTS = {
    "tokens": b"a.jpg#0\tA dog .\r\nb.jpg#1\tA cat .\n",
    "csv": b'\xef\xbb\xbfimage,caption,split\na.jpg,"A dog, a ""cat""",train\n',
    "pipes": b"image_name| comment_number| comment\na.jpg| 0| A dog .\nb.jpg| 4   A cat .\n",
    "list": b"a.jpg\r\nb.jpg\n",
    "coco": b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog"}]}',
    "karpathy": b'{"images": [{"cocoid": 1, "filename": "a.jpg", "split": "val", "sentences": [{"raw": "A dog"}]}]}',
}


def image(data: bytes) -> None:
    opened = open_image(data)
    assert opened.mode == "RGB" and min(opened.size) > 0


def reader(name: str):
    path = FOLDER / "captions.txt"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if name == "list":
            caption_files.parse_list(path)
            return
        faults = Faults(path, lenient=len(data) % 2 == 0)
        rows = getattr(caption_files, f"parse_{name}")(path, faults)
        if name in ("tokens", "csv", "pipes") and not faults.kinds:
            for row in rows:
                assert row.image and ".." not in row.image.split("/") and "\n" not in row.caption
                assert row.caption or faults.lenient
        faults.raise_if_any()

    return read


def archive(data: bytes) -> None:
    path = FOLDER / "archive"
    path.write_bytes(data)
    with tempfile.TemporaryDirectory(dir=FOLDER) as inside:
        try:
            extract(path, Path(inside) / "deep" / "er", max_bytes=1_000_000)
        finally:
            assert set(os.listdir(inside)) <= {"deep"} and set(os.listdir(Path(inside) / "deep")) <= {"er"}


def main() -> None:
    name, seconds = sys.argv[1], int(sys.argv[2])
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    if name == "images":
        seeds = {key: data for key, data in {**nasty.good_files(), **nasty.bad_files()}.items() if len(data) < 6000}
    elif name == "archive":
        from tests import test_archives as hostile
        seeds = {kind: make() for kind, make in hostile.HOSTILE.items() if "bomb" not in kind and "long" not in kind}
        seeds = {kind: data for kind, data in seeds.items() if len(data) < 40_000}
    else:
        seeds = TEXTS
    for number, data in enumerate(seeds.values()):
        (corpus / str(number)).write_bytes(data)
    target = {"images": image, "archive": archive}.get(name) or reader(name)

    def once(data: bytes) -> None:
        with contextlib.suppress(CaptioningError):
            target(data)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=20000",
                   "-print_final_stats=1", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
