"""Image-caption datasets by name: each layout becomes one table with the columns image, caption and split."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers import caption_files as files
from helpers.caption_files import SPLITS, Faults, Row, match_key, names_in
from helpers.download import fetch_dataset
from helpers.files import ROOT, CaptioningError, cache_dir, read_json, unknown_name, writing
from helpers.images import SUFFIXES, near_duplicates, open_image, perceptual_hash, shown
from helpers.text import normalise
from pocket_scenes import scenes

ORDER = ("train", "dev", "test")
# Captions of images that were never published: the two are known faults of the official caption files.
NEVER_PUBLISHED = {"2258277193_586949ec62.jpg.1", "2258277193_586949ec62.jpg"}


@dataclass
class Dataset:
    """Captioned images: `table` has one row a caption with the columns image, caption and split, all text.

    `image` is the file's name in `image_dir`; a split is "train", "dev" or "test", or "" for images that are in none.
    `notes` says what the reader mended or left out. Raises CaptioningError when an image is in two splits or the table
    is empty. Notebook 01, section 3.
    """

    name: str
    table: pd.DataFrame
    image_dir: Path
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_dir = Path(self.image_dir)
        if self.table.empty:
            raise CaptioningError(f"The dataset {self.name!r} has no captions.")
        pairs = self.table.drop_duplicates(["image", "split"])["image"]
        for image in pairs[pairs.duplicated()]:
            raise CaptioningError(f"In {self.name!r} images are in two splits, such as {shown(image)}.")

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
        return self._rows(split).groupby("image", sort=False)["caption"].agg(list).to_dict()

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

    def _rows(self, split: str | None) -> pd.DataFrame:
        if split is None:
            return self.table[self.table["split"] != ""]
        known = SPLITS.get(str(split).lower())
        if known is None:
            raise unknown_name("split", split, ORDER)
        rows = self.table[self.table["split"] == known]
        if rows.empty:
            raise CaptioningError(f"{self.name!r} has no {known!r} split, but {self.splits()}.")
        return rows


def split_by_image(
    table: pd.DataFrame, seed: int = 0, parts: tuple[float, float, float] = (0.75, 0.125, 0.125)
) -> pd.DataFrame:
    """Returns a copy of `table` with a new `split`: whole images drawn at random, train, dev and test as in `parts`.

    The same images and seed give the same split whatever the order of the rows. From three images on every split with a
    part above zero gets at least one; fewer all go to train. Notebook 01, section 4.
    """
    images = sorted(set(table["image"]))
    random.Random(seed).shuffle(images)
    enough = len(images) >= 3
    dev, test = (max(1, round(len(images) * part / sum(parts))) if part and enough else 0 for part in parts[1:])
    names = ["dev"] * dev + ["test"] * test + ["train"] * (len(images) - dev - test)
    return table.assign(split=table["image"].map(dict(zip(images, names, strict=True))))


# Where each dataset keeps its things: caption files and folders of images, of which the first found count; the lists
# of each split; Karpathy and Fei-Fei's JSON file (splits, and captions where it is alone); parts of a split at random
LAYOUTS = read_json(ROOT / "data" / "layouts.json")
LAYOUTS["pocket"] = LAYOUTS["flickr8k"]


def load_dataset(
    name: str, data_dir: str | os.PathLike | None = None, download: bool = False, missing: str = "raise", **options
) -> Dataset:
    """Returns the dataset `name`: "pocket", "flickr8k", "flickr30k", "coco" or "folder".

    `data_dir` is where its files lie, data/NAME if not given. "pocket" is drawn on first use into the cache folder, of
    `options` images, size and seed; else options go to `read_dataset`. With `download`, absent files are fetched.
    Raises CaptioningError on an unknown name or faulty files. Notebook 01, section 2.
    """
    if name not in LAYOUTS:
        raise unknown_name("dataset", name, LAYOUTS)
    if name == "folder" and data_dir is None:
        raise CaptioningError('load_dataset("folder", ...) needs data_dir, the folder with the photos and the CSV.')
    made = cache_dir() / "".join(["pocket", *(f"-{key}{options[key]}" for key in sorted(options))])
    folder = Path(data_dir or (made if name == "pocket" else ROOT / "data" / name))
    if name == "pocket":
        if options or data_dir is None or not (folder / "captions.txt").is_file():
            try:
                with writing(folder):
                    scenes.generate(folder, **options)  # does nothing when the same set is there already
            except ValueError as error:
                raise CaptioningError(str(error)) from error
        options = {}
    elif download and name != "folder":
        folder = fetch_dataset(name, folder, functools.partial(read_dataset, name))
    return read_dataset(name, folder, missing=missing, **options)


def read_dataset(name: str, folder: str | os.PathLike, seed: int = 0, missing: str = "raise") -> Dataset:
    """Returns the dataset in `folder`, in the layout `name` of LAYOUTS. Raises as `load_dataset` does.

    Splits come from lists, Karpathy's file, or the rows; without any they are drawn (`seed`). `missing="skip"` leaves
    out absent images and says so. Notebook 01, section 2.
    """
    folder, layout = Path(folder), LAYOUTS[name]
    if not folder.is_dir():
        raise CaptioningError(f"There is no folder {shown(folder)}. data/README.md says how to fetch a dataset.")
    names = tuple(filter(None, (*layout["captions"], layout["karpathy"])))
    found = files.find(folder, names)
    if not found:
        raise CaptioningError(f"{shown(folder)} holds none of {', '.join(names)}. See data/README.md.")
    faults, splits = Faults(folder if name == "coco" else found[0], lenient=name != "folder"), {}
    if name == "coco":
        rows = files.coco_rows(folder, found, faults)
    elif len(found) > 1:
        raise CaptioningError(f"{shown(folder)} holds {len(found)} CSV files; keep one.")
    else:
        rows = files.parse(found[0], faults)
        if found[0].name != layout["karpathy"]:
            splits = files.official_splits(folder, layout["lists"], layout["karpathy"], faults)
    keys = {match_key(row.image) for row in rows}
    places = [folder / place for place in layout["images"] if (folder / place).is_dir()]
    if not places:
        raise CaptioningError(f"{shown(folder)} holds none of {', '.join(layout['images'])}. See data/README.md.")
    images = max(places, key=lambda place: len(keys & set(map(match_key, names_in(place, keys)))))
    dataset = _checked(name, rows, images, faults, splits, missing)
    if not dataset.table["split"].any():
        dataset.table = split_by_image(dataset.table, seed, layout["parts"])
        drawn = f"No split is given: split at random by image with seed {seed}."
        few = "Fewer than three images: all are in train, and there is no dev or test split."
        dataset.notes.append(drawn if len(dataset.images()) >= 3 else few)
    return dataset


read_flickr8k, read_folder = (functools.partial(read_dataset, name) for name in ("flickr8k", "folder"))


def _checked(
    name: str, rows: list[Row], images: Path, faults: Faults, splits: Mapping[str, str], missing: str
) -> Dataset:
    """Returns the Dataset, or raises all faults at once. `splits` names each image's split; else the rows do."""
    if missing not in ("raise", "skip"):
        raise unknown_name("value of missing", missing, ["raise", "skip"])
    notes, names = [], {row.image for row in rows}
    present = names_in(images, names)
    alike = {match_key(image): image for image in sorted(present)}
    actual = {image: image if image in present else alike.get(match_key(image), image)
              for image in names | splits.keys()}
    if renamed := sorted(image for image in names if image != actual[image]):
        notes.append(f"{len(renamed):,} names are written otherwise than the files' (accents, slashes, .JPG) and were "
                     f"matched: {shown(renamed[0])} is {shown(actual[renamed[0]])}.")
    rows = [row._replace(image=actual[row.image]) for row in rows]
    splits = {actual[image]: split for image, split in splits.items()}
    captioned = {row.image for row in rows if row.caption}
    from_rows, absent = not splits and any(row.split for row in rows if row.caption), {}
    for row in rows:
        if row.caption and from_rows and splits.setdefault(row.image, row.split) != row.split:
            faults.add("image whose rows name different splits", f"{row.image}, {row.where}")
        if not row.caption and not faults.lenient and row.image not in captioned:
            faults.add("empty caption; write one or delete the row", row.where)
        elif not row.caption:
            faults.mend("row without a caption left out", row.where)
        elif row.image not in present:
            absent.setdefault(row.image, row.where)
    nearly = {image.casefold(): f"; there is {image}" for image in present}
    for image, where in absent.items():
        if missing == "raise" and image not in NEVER_PUBLISHED:
            hint = nearly.get(image.casefold(), "")
            faults.add(f"captions for an image that is not in {shown(images)}", f"{image}, {where}{hint}")
    for split in ORDER:
        listed = {image for image, its in splits.items() if its == split}
        if listed and not listed & captioned:
            notes.append(f"No captions here for the {len(listed):,} images of the split {split!r}.")
        elif missing == "raise":
            for image in sorted(listed - captioned):
                faults.add(f"image in the list {split!r} without a caption", image)
    faults.raise_if_any()
    notes += files.listed(faults.mended)
    if absent:
        notes.append(f"{len(absent):,} of {len(captioned):,} images are not in {shown(images)} and are left out, such "
                     f"as {shown(min(absent))}.")
    kept = [(row.image, row.caption, splits.get(row.image, "")) for row in rows if row.caption and row.image in present]
    if not kept:
        raise CaptioningError(f"{faults.source} has no captions{' of images that are here' * bool(absent)}.")
    table = pd.DataFrame(kept, columns=["image", "caption", "split"], dtype="object")  # a name may be no valid Unicode
    outside = table.loc[table["split"] == "", "image"].nunique()
    if splits and outside:
        notes.append(f"{outside:,} images are in no split list and are left out of the splits.")
    if bare := sorted(image for image in present - captioned if image.lower().endswith(SUFFIXES)):
        some = ", ".join(map(shown, bare[:5])) + ", ..." * (len(bare) > 5)
        notes.append(f"{len(bare):,} images have no caption: {some}")
    return Dataset(name, table, images, notes)


@dataclass
class Report:
    """What a dataset holds, and what is wrong with it: `counts` has a row a split, `findings` kind, image and detail.

    new_words: the share that train does not have, 0 to 1; repeated: captions that occur again in the split;
    near-duplicate: of an image in another split, so that scores look better than they are. Notebook 01, section 5.
    """

    name: str
    counts: pd.DataFrame
    findings: pd.DataFrame
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"Dataset {self.name}", "", self.counts.to_string(float_format="{:.3g}".format), ""]
        lines += [f"- {note}" for note in self.notes]
        for kind, rows in self.findings.groupby("kind", sort=False):
            lines.append(f"- {kind}: {len(rows):,}")
            lines += [f"    {shown(row.image)}: {row.detail}" for row in rows.head(5).itertuples()]
            lines += ["    ..."] if len(rows) > 5 else []
        return "\n".join(lines)


def dataset_report(dataset: Dataset) -> Report:
    """Returns the Report; every image is opened, 2 to 10 ms each on a core. Notebook 01, section 5."""
    table = dataset.table.assign(words=[tuple(normalise(caption)) for caption in dataset.table["caption"]])
    table = table[table["split"] != ""]
    per_image = Counter(table["image"])
    usual = Counter(per_image.values()).most_common(1)[0][0] if per_image else 0
    findings = [("few captions", image, f"{count}, where most images have {usual}")
                for image, count in per_image.items() if count < usual]
    findings += _image_findings(dataset)
    known = set(table.loc[table["split"] == "train", "words"].explode())
    counts = {split: _counts(table[table["split"] == split], known) for split in dataset.splits()}
    counts["all"] = _counts(table, known)
    clean = [] if findings else ["Every image can be read, and no two are nearly the same."]
    return Report(dataset.name, pd.DataFrame.from_dict(counts, orient="index").rename_axis("split"),
                  pd.DataFrame(findings, columns=["kind", "image", "detail"]), dataset.notes + clean)


def _counts(rows: pd.DataFrame, known: set[str]) -> dict[str, float]:
    per_image, lengths = rows["image"].value_counts(), rows["words"].map(len)
    words = rows["words"].explode().dropna()
    return {
        "images": len(per_image), "captions": len(rows), "captions_per_image": per_image.mean(),
        "fewest": per_image.min(), "most": per_image.max(), "words": lengths.mean(), "longest": lengths.max(),
        "vocabulary": words.nunique(), "new_words": (~words.isin(known)).sum() / max(1, len(words)),
        "repeated": int(rows["words"].duplicated().sum()),
    }


def _hash_or_reason(path: Path) -> np.ndarray | str:
    try:
        return perceptual_hash(open_image(path))
    except CaptioningError as error:
        return str(error)


def _image_findings(dataset: Dataset) -> list[tuple[str, str, str]]:
    split_of = dict(zip(dataset.table["image"], dataset.table["split"], strict=True))
    with ThreadPoolExecutor() as pool:
        looked_at = pool.map(_hash_or_reason, map(dataset.path, split_of))
        seen = dict(zip(split_of, tqdm(looked_at, "images", len(split_of), leave=False), strict=True))
    found = [("unreadable", image, why) for image, why in seen.items() if isinstance(why, str)]
    hashes = {image: value for image, value in seen.items() if not isinstance(value, str)}
    names = list(hashes)
    for one, other, distance in near_duplicates(np.stack(list(hashes.values()))) if hashes else ():
        splits = split_of[names[one]] or "no split", split_of[names[other]] or "no split"
        detail = f"{splits[0]}; like {shown(names[other])} in {splits[1]} ({distance} of 255 bits differ)"
        found.append(("repeated image" if splits[0] == splits[1] else "near-duplicate", names[one], detail))
    return found
