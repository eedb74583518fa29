"""Fetches the full-size datasets: one source after the other, checked, unpacked, and put in place whole.

A dataset comes to `data/NAME`. What is on the way lies in `data/NAME.download`. `data/sources.json` says how many
images, and captions an image, each should have, and its sources: a `repository` of the Hugging Face hub, or `files`,
zip archives with a `name`, `url`, perhaps a `hash` ("md5:..."), a folder to go `into`, and whether they are `optional`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from helpers.files import ROOT, CaptioningError, only_one, read_json, unknown_name, writing

MAX_RATIO = 200  # unpacked to packed: photos are near 1, captions below 10, bombs above 1,000
DATASETS = read_json(ROOT / "data" / "sources.json")


def fetch_dataset(name: str, folder: str | os.PathLike, read: Callable) -> Path:
    """Returns `folder` with the dataset `name` in it, fetched if it is missing or empty. Notebook 01, section 1.

    Each source is tried until one gives a complete dataset that `read` (folder -> Dataset) accepts. The folder appears
    whole or not at all; of two processes the second waits. Raises CaptioningError with why each source failed, and how
    to do it by hand.
    """
    folder = Path(folder).absolute()
    if name not in DATASETS:
        raise unknown_name("dataset to download", name, DATASETS)
    work, problems, addresses = folder.with_name(folder.name + ".download"), [], []
    with only_one(work):
        if folder.is_dir() and any(folder.iterdir()):
            return folder
        for source in DATASETS[name]["sources"]:
            try:
                _from_source(source, folder, work, read, DATASETS[name])
                return folder
            except CaptioningError as error:
                problems.append(f"- {source['name']}: {error}")
                addresses += [f"    {file['url']}" for file in source.get("files", ())]
    raise CaptioningError("\n".join([
        f"{name} could not be downloaded.", *problems, "By hand: where there is a connection, download", *addresses,
        f"  put the files into {work} under the same names and call again, or",
        f"  fill {folder} yourself, in a layout that data/README.md shows."]))  # fmt: skip


def _from_source(source: Mapping, folder: Path, work: Path, read: Callable, expected: Mapping) -> None:
    """Fetches, unpacks, checks, and renames to `folder`."""
    archives, part = [], work / "unpacked"
    for file in source.get("files", ()):
        try:
            archives.append((file, fetch_file(file, work)))
        except CaptioningError as error:
            if not file.get("optional"):
                raise
            print(f"{file['name']} is left out: {error}")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed; nobody else is here
    try:
        with writing(folder):
            part.mkdir(parents=True)
            if "repository" in source:
                from_hub(source["repository"], source.get("revision"), part)
            for file, path in archives:
                extract(path, part / file.get("into", ""))
            counts = read(part).table.groupby("image").size()
            if len(counts) < expected["images"] or counts.min() < expected["captions"]:
                raise CaptioningError(f"what was downloaded has {len(counts):,} images with {counts.min()} captions or "
                                      f"more; {expected['images']:,} with {expected['captions']} were expected")
            if folder.is_dir():
                folder.rmdir()  # empty, or we should not be here
            os.rename(part, folder)
    except CaptioningError:
        shutil.rmtree(part, ignore_errors=True)
        for file, path in archives:
            if "hash" not in file:  # a known hash says that the bytes are right
                path.unlink(missing_ok=True)
        raise
    for _, path in archives:
        path.unlink(missing_ok=True)


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a zip archive into `folder`. Notebook 01, section 1.

    Raises CaptioningError when it is none, is damaged, leads out of the folder, or unpacks to more than MAX_RATIO times
    its size. What was written until then stays: the folder should be a temporary one.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if not member.filename.startswith("__MACOSX/")]
            if sum(member.file_size for member in members) > max(archive.stat().st_size * MAX_RATIO, 10_000_000):
                raise CaptioningError(f"{archive.name} is refused: it unpacks to far more than it should.")
            for name in (member.filename.replace("\\", "/") for member in members):
                if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
                    raise CaptioningError(f"{archive.name} is refused: {name!r} leads out of the folder.")
            packed.extractall(folder, members)
    except (CaptioningError, OSError):
        raise
    except Exception as error:  # zipfile raises nearly everything on damaged input
        raise CaptioningError(f"{archive.name} is damaged or no zip archive: {error}.") from error


def fetch_file(file: Mapping, folder: Path) -> Path:
    """Returns the path of a file of `data/sources.json` in `folder`. Notebook 01, section 1.

    One that is there is checked and used, a part of one continued. Raises CaptioningError.
    """
    path, part = folder / file["name"], folder / f"{file['name']}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        _download(file["url"], part)
        os.replace(part, path)
    if "hash" in file:
        algorithm, _, digest = file["hash"].partition(":")
        with open(path, "rb") as content:
            found = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if found != digest:
            path.replace(path.with_name(path.name + ".wrong"))
            raise CaptioningError(f"{path} has the wrong {algorithm} ({found} instead of {digest}). It is set aside as "
                                  f"{path.name}.wrong. Try again.")
    return path


def _download(url: str, part: Path) -> None:
    """Fetches `url` into `part`, going on from what is there; a server that cuts the line is asked again."""
    from huggingface_hub.file_download import http_get

    try:
        with open(part, "ab") as out:
            http_get(url, out, resume_size=out.tell(), displayed_filename=part.stem)
    except Exception as error:  # whatever a library, a network and a disk raise between them
        if getattr(getattr(error, "response", None), "status_code", None) == 416:
            return  # nothing is left to send, or the part is of another file: the hash tells
        raise CaptioningError(f"{url}: {str(error).strip()[:300]}. What has come so far is kept.") from error


def from_hub(repository: str, revision: str | None, folder: Path) -> None:
    """Fills `folder` in Flickr8k's Kaggle layout from the Parquet files of a dataset of the Hugging Face hub.

    A row has `image` ({"bytes"}), captions in `caption` (text or list) or `caption_0`, `caption_1`, ..., and perhaps
    `split` and `filename`. Raises CaptioningError when they cannot be fetched or read. Notebook 01, section 1.
    """
    import pandas
    from huggingface_hub import snapshot_download

    table = []
    try:
        found = snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns="*.parquet")
        (folder / "Images").mkdir()
        for path in sorted(Path(found).rglob("*.parquet")):
            for row in pandas.read_parquet(path).to_dict("records"):
                split = row.get("split") or re.split(r"[-_]\d", path.stem)[0]
                name = os.path.basename(row.get("filename") or f"{split}_{len(table):06d}.jpg")
                (folder / "Images" / name).write_bytes(row["image"]["bytes"])
                captions = [row[key] for key in row if re.fullmatch(r"caption_\d+", key)] or row["caption"]
                for text in [captions] if isinstance(captions, str) else captions:
                    table.append({"image": name, "caption": " ".join(text.split()), "split": split})
    except Exception as error:  # whatever a library, a network and a table raise between them
        raise CaptioningError(f"the hub: {str(error).strip()[:300]}") from error
    pandas.DataFrame(table).to_csv(folder / "captions.txt", index=False)
