"""The table behind every dataset: one row a caption, checked against the image files, split by image."""

from __future__ import annotations

import hashlib
import os
import random
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from helpers.caption_files import SPLITS, Faults, Row
from helpers.errors import CaptioningError, unknown_name
from helpers.images import SUFFIXES, shown

ORDER = ("train", "dev", "test")
# Captions of images that were never published: the two are known faults of the official caption files.
NEVER_PUBLISHED = {"2258277193_586949ec62.jpg.1", "2258277193_586949ec62.jpg"}


@dataclass
class Dataset:
    """Captioned images: `table` has one row a caption with the columns image, caption and split, all text.

    `image` is the name used in the caption file, relative to `image_dir`. A split is "train", "dev" or "test", or ""
    for images that no split list names: those are in the table but in no split. `notes` says what the reader mended or
    left out. Raises CaptioningError when an image is in two splits or the table is empty.
    """

    name: str
    table: pd.DataFrame
    image_dir: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_dir = Path(self.image_dir)
        if self.table.empty:
            raise CaptioningError(f"The dataset {self.name!r} has no captions.")
        if (twice := _in_two_splits(self.table)):
            raise CaptioningError(f"In {self.name!r} {len(twice)} images are in two splits, such as {shown(twice[0])}.")

    def splits(self) -> list[str]:
        """Returns the splits that have images: train, dev, test, in this order."""
        present = set(self.table["split"])
        return [split for split in ORDER if split in present]

    def images(self, split: str | None = None) -> list[str]:
        """Returns the image names of a split, each once, in the order of the caption file; None for all splits."""
        return list(dict.fromkeys(self._rows(split)["image"]))

    def captions(self, split: str | None = None) -> list[str]:
        """Returns the captions of a split, in the order of the caption file."""
        return self._rows(split)["caption"].tolist()

    def references(self, split: str | None = None) -> dict[str, list[str]]:
        """Returns image name -> its captions, for the images of a split in the order of `images(split)`."""
        rows, references = self._rows(split), {}
        for image, caption in zip(rows["image"], rows["caption"], strict=True):
            references.setdefault(image, []).append(caption)
        return references

    def path(self, image: str) -> Path:
        """Returns where the file of an image is."""
        return self.image_dir / image

    def fingerprint(self) -> str:
        """Returns a hash that changes with any name, caption, split, or size of an image file."""
        digest = hashlib.sha256()
        for row in self.table[["image", "caption", "split"]].itertuples(index=False):
            digest.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))
        for image in dict.fromkeys(self.table["image"]):
            path = self.path(image)
            digest.update(f"{path.stat().st_size if path.exists() else -1} ".encode())
        return digest.hexdigest()[:32]

    def only(self, split: str) -> Dataset:
        """Returns the dataset with the rows of one split alone."""
        return Dataset(self.name, self._rows(split).reset_index(drop=True), self.image_dir, self.notes)

    def _rows(self, split: str | None) -> pd.DataFrame:
        if split is None:
            return self.table[self.table["split"] != ""]
        known = SPLITS.get(str(split).lower())
        if known is None:
            raise unknown_name("split", split, ORDER)
        rows = self.table[self.table["split"] == known]
        if rows.empty:
            present = ", ".join(f"{name} ({self.table.image[self.table.split == name].nunique():,} images)"
                                for name in self.splits()) or "no split at all"
            where = shown(self.image_dir.parent)
            raise CaptioningError(f"{self.name!r} in {where} has no {known!r} split; it has {present}.")
        return rows


def split_by_image(
    table: pd.DataFrame, seed: int = 0, parts: tuple[float, float, float] = (0.75, 0.125, 0.125)
) -> pd.DataFrame:
    """Returns a copy of `table` with a new `split`: whole images drawn at random, train, dev and test as in `parts`.

    All captions of an image fall into one split. The same images and seed give the same split whatever the order of the
    rows. From three images on every split with a part above zero gets at least one; fewer all go to train.
    """
    if len(parts) != 3 or min(parts) < 0 or parts[0] <= 0:
        raise CaptioningError(f"parts should be three shares (train, dev, test), train above 0, not {parts}.")
    images = sorted(set(table["image"]))
    random.Random(seed).shuffle(images)
    enough = len(images) >= 3
    dev, test = (max(1, round(len(images) * part / sum(parts))) if part and enough else 0 for part in parts[1:])
    names = dict.fromkeys(images, "train") | dict.fromkeys(images[:dev], "dev") \
        | dict.fromkeys(images[dev:dev + test], "test")
    return table.assign(split=table["image"].map(names))


def make_dataset(
    name: str, rows: list[Row], images: Path, faults: Faults, splits: Mapping[str, str] | None,
    seed: int = 0, parts: tuple[float, float, float] = (0.75, 0.125, 0.125), partial: bool = True,
) -> Dataset:
    """Returns the checked Dataset; raises every fault of the files and of their match at once.

    `splits` names each image's split; empty or None has the images split at random. With `partial`, a split whose
    images are all absent is left out with a note (a published dataset of which only some splits were fetched).
    """
    splits, notes, rows = splits or {}, [], [row for row in rows if row.caption]
    present = names_in(images, {os.path.dirname(row.image) for row in rows})
    without: dict[str, list[Row]] = {}
    for row in rows:
        if row.image not in present:
            without.setdefault(row.image, []).append(row)
    all_names = {row.image for row in rows}
    absent = [split for split in ORDER if (of_split := {i for i in all_names if splits.get(i) == split})
              and of_split <= without.keys()]
    if not partial or len(absent) == len({*splits.values()} - {""}):  # no image at all: the wrong folder
        absent = []
    nearly = {_loose(image): image for image in sorted(present, reverse=True)}
    for image, of_image in without.items():
        if image in NEVER_PUBLISHED:
            notes.append(f"{len(of_image)} captions of {image} left out: the image was never published.")
        elif splits.get(image) not in absent:
            hint = nearly.get(_loose(image)) or nearly.get(_loose(image + ".jpg"))
            faults.add(f"captions for an image that is not in {shown(images)}",
                       f"{image}, {of_image[0].where}" + (f"; there is {hint}" if hint else ""))
    notes += [f"The images of the split {split!r} are not here; its captions are left out." for split in absent]
    for split in ORDER:
        listed = {image for image, of in splits.items() if of == split}
        if listed and not listed & all_names:
            notes.append(f"No captions here for the {len(listed):,} images of the split {split!r}.")
        else:
            for image in sorted(listed - all_names):
                faults.add(f"image in the list {split!r} without a caption", image)
    faults.raise_if_any()
    notes += faults.notes()
    kept = [row for row in rows if row.image not in without]
    table = pd.DataFrame({"image": [row.image for row in kept], "caption": [row.caption for row in kept],
                          "split": [splits.get(row.image, "") for row in kept]}, dtype="object")
    if table.empty:
        raise CaptioningError(f"{faults.source} has no captions.")
    if not splits:
        table = split_by_image(table, seed, parts)
        if table["image"].nunique() < 3:
            notes.append("Fewer than three images: all are in train, and there is no dev or test split.")
        else:
            notes.append(f"No split is given: split at random by image with seed {seed}.")
    elif (outside := table.loc[table["split"] == "", "image"].nunique()):
        notes.append(f"{outside:,} images are in no split list and are left out of the splits.")
    if (repeated := int(table.duplicated(["image", "caption"]).sum())):
        notes.append(f"{repeated:,} rows repeat a caption of the same image (kept).")
    if (bare := sorted(name for name in present - all_names if name.lower().endswith(SUFFIXES))):
        more = ", ..." if len(bare) > 5 else ""
        notes.append(f"{len(bare):,} images have no caption: {', '.join(map(shown, bare[:5]))}{more}")
    return Dataset(name, table, images, notes)


def names_in(folder: Path, below: Iterable[str] = ("",)) -> set[str]:
    """Returns the files in `folder` and in the folders `below` it, as names relative to it."""
    names: set[str] = set()
    for place in {"", *below}:
        try:
            with os.scandir(folder / place) as entries:  # one listing, not a look-up an image: fast on a mounted drive
                names |= {f"{place}/{entry.name}" if place else entry.name for entry in entries
                          if not entry.name.startswith(".")}
        except (OSError, ValueError):
            continue
    return names


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _in_two_splits(table: pd.DataFrame) -> list[str]:
    counts = table.drop_duplicates(["image", "split"])["image"]
    return sorted(set(counts[counts.duplicated()]))
