"""Tar shards: written, listed, streamed once through the encoder, and refused when they are not what they should be."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.cluster.shards import index_shards, main, members, read_shards, shard_features, write_shards
from helpers.datasets import load_dataset
from helpers.features import cache_features
from helpers.files import CaptioningError
from helpers.training import features_of, load_data
from tests.test_features import Tiny, fork, needs_fork


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def small(tmp_path: Path, monkeypatch):
    """A dataset of 25 photos, some with odd names, with two captions each."""
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "small"
    (folder / "images" / "deep").mkdir(parents=True)
    names = [f"{n}.png" for n in range(22)] + ["a.b.png", "deep/c é.png", "UPPER.PNG"]
    for number, name in enumerate(names):
        (folder / "images" / name).write_bytes(picture(number))
    split = lambda n: ("train", "dev", "test")[0 if n < 17 else 1 if n < 21 else 2]  # noqa: E731
    rows = [f'{name},"A dog, number {n}.",{split(n)}' for n, name in enumerate(names) for _ in range(2)]
    (folder / "captions.csv").write_text("image,caption,split\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return load_dataset("folder", folder)


@pytest.fixture
def sharded(small, tmp_path: Path) -> Path:
    write_shards(small, tmp_path / "shards", images_per_shard=10)
    return tmp_path / "shards"


def test_shards_hold_the_images_and_the_table_stands_in_front(small, sharded) -> None:
    assert [path.name for path in sorted(sharded.glob("*.tar"))] == [f"folder-{n:06d}.tar" for n in range(3)]
    found = dict(member for shard in sorted(sharded.glob("*.tar")) for member in members(str(shard)))
    assert found == {image: small.path(image).read_bytes() for image in small.images()}
    again = read_shards(sharded)
    assert again.references() == small.references() and again.images("dev") == small.images("dev")
    assert load_data({"name": "shards", "data_dir": str(sharded)}).shards == again.shards
    with pytest.raises(CaptioningError, match="0.png lies in a tar shard"):
        again.path("0.png")
    with pytest.raises(CaptioningError, match="already"):
        write_shards(small, sharded)


def test_streamed_features_are_those_of_the_files(small, sharded) -> None:
    encoder = Tiny()
    streamed = shard_features(encoder, read_shards(sharded), batch_size=4)
    files = cache_features(Tiny(), small)
    assert set(streamed.names) == set(files.names) and encoder.encoded == 25
    assert torch.equal(streamed[files.names], files[files.names])
    assert shard_features(encoder, read_shards(sharded))["7.png"].shape == (4, 3) and encoder.encoded == 25
    mirrored = features_of(Tiny(), read_shards(sharded), "grid", flip=True)
    assert torch.equal(mirrored["7.png"], cache_features(Tiny(), small, flip=True)["7.png"])


def test_what_is_no_photo_is_left_out_and_named(sharded) -> None:
    with tarfile.open(sharded / "folder-000003.tar", "w") as tar:
        for name, data in (("x.jpg", b""), ("y.jpg", b"no picture"), ("z.txt", b"a text"), ("w.png", picture(3))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    features = shard_features(Tiny(), read_shards(sharded), batch_size=3)
    assert set(features.failed) == {"x.jpg", "y.jpg"} and "w.png" in features and len(features) == 26
    with pytest.raises(CaptioningError, match="y.jpg"):
        features["y.jpg"]


@needs_fork
def test_processes_share_the_shards(sharded, tmp_path) -> None:
    log = tmp_path / "log"
    dataset = read_shards(sharded)
    both = [fork(lambda n=n: shard_features(Tiny(log=log), dataset, process=(n, 2))) for n in range(2)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in both] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == [5, 10, 10]
    encoder = Tiny()
    assert len(shard_features(encoder, dataset)) == 25 and encoder.encoded == 0


def test_a_killed_run_goes_on_at_the_next_shard(sharded) -> None:
    class Stops(Tiny):
        def grid(self, pixels):
            if self.encoded >= 20:
                raise KeyboardInterrupt
            return super().grid(pixels)

    with pytest.raises(KeyboardInterrupt):
        shard_features(Stops(), read_shards(sharded), batch_size=10)
    encoder = Tiny()
    assert len(shard_features(encoder, read_shards(sharded))) == 25 and encoder.encoded == 5


def test_a_cut_or_missing_shard_is_named(sharded) -> None:
    path = sharded / "folder-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(CaptioningError, match="folder-000001.tar cannot be read"):
        shard_features(Tiny(), read_shards(sharded))
    path.write_bytes(b"this is no tar file, but long enough to look" * 30)
    with pytest.raises(CaptioningError, match="folder-000001.tar cannot be read"):
        shard_features(Tiny(), read_shards(sharded))
    (sharded / "shards.txt").write_text("folder-000000.tar\ngone.tar\n")
    with pytest.raises(CaptioningError, match="gone.tar cannot be read: No such file"):
        shard_features(Tiny(), read_shards(sharded))


@pytest.mark.parametrize("line", ["pipe:touch owned", "http://a.b/x.tar;touch owned", "https://a/$(id).tar", "file:a"])
def test_an_address_that_a_shell_would_run_is_refused(sharded, line: str) -> None:
    (sharded / "shards.txt").write_text(f"folder-000000.tar\n{line}\n")
    with pytest.raises(CaptioningError, match="neither a file nor a plain http"):
        read_shards(sharded)


def test_an_address_is_read_as_it_comes(sharded, tmp_path) -> None:
    import shutil
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not shutil.which("curl"):
        pytest.skip("webdataset reads addresses with curl, which is not here")
    handler = partial(SimpleHTTPRequestHandler, directory=str(sharded))
    handler.func.log_message = lambda *a: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        away = tmp_path / "away"
        away.mkdir()
        (away / "captions.csv").write_bytes((sharded / "captions.csv").read_bytes())
        base = f"http://127.0.0.1:{server.server_address[1]}"
        (away / "shards.txt").write_text("".join(f"{base}/folder-{n:06d}.tar\n" for n in range(3)))
        features = shard_features(Tiny(), read_shards(away))
        server.shutdown()
    assert len(features) == 25 and {path.name for path in away.iterdir()} == {"captions.csv", "shards.txt"}


def test_shards_with_texts_get_a_table(tmp_path, capsys, monkeypatch) -> None:
    for number in range(3):
        with tarfile.open(tmp_path / f"{number:05d}.tar", "w") as tar:
            for row in range(10):
                key = f"{number:05d}{row:04d}"
                text = f"A cat,\nnumber {row}.".encode()
                for name, data in ((f"{key}.jpg", picture(row)), (f"{key}.txt", text), (f"{key}.json", b"{}")):
                    if row == 9 and name.endswith(".txt"):
                        continue
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(CaptioningError, match="no captions.csv.*helpers.shards index"):
        read_shards(tmp_path)
    assert main(["index", str(tmp_path)]) == 0 and capsys.readouterr().out == "27 captions\n"
    dataset = read_shards(tmp_path)
    assert dataset.references()["000020003.jpg"] == ["A cat, number 3."] and "000020009.jpg" not in dataset.references()
    assert dataset.splits() == ["train", "dev", "test"] and len(dataset.images("train")) == 25
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    assert len(shard_features(Tiny(), dataset)) == 30  # one without a caption is encoded all the same
    with tarfile.open(tmp_path / "again.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("000010003.jpg"))
    with pytest.raises(CaptioningError, match="Two images are called 000010003,"):
        index_shards(tmp_path)


def test_other_folders_are_refused(tmp_path, small, capsys) -> None:
    with pytest.raises(CaptioningError, match="no tar file"):
        read_shards(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "captions.csv").write_text("file,text\na,b\n")
    with pytest.raises(CaptioningError, match="needs the columns"):
        read_shards(tmp_path)
    assert main(["write", "--dataset", "folder", "--data_dir", str(tmp_path / "none"), "--to", str(tmp_path)]) == 1
    assert "error: There is no folder" in capsys.readouterr().err
