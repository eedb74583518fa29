"""Image-caption datasets by name: every layout becomes one table with the columns image, caption and split."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from helpers import caption_files as files
from helpers.caption_files import Faults, Row
from helpers.dataset_table import ORDER, Dataset, make_dataset, names_in, split_by_image
from helpers.errors import CaptioningError, unknown_name
from helpers.files import ROOT, cache_dir
from helpers.images import SUFFIXES, shown

__all__ = ["Dataset", "load_dataset", "read_coco", "read_flickr30k", "read_flickr8k", "read_folder", "split_by_image"]


def load_dataset(
    name: str, data_dir: str | os.PathLike | None = None, download: bool = False, split: str | None = None, **options
) -> Dataset:
    """Returns the dataset `name`: "pocket", "flickr8k", "flickr30k", "coco" or "folder".

    `data_dir` is where its files lie (data/NAME if not given; for "folder" it must be). "pocket" is generated on first
    use into the cache folder; `options` go to the generator (images, size, seed) or to the reader. With `download`,
    files that are not there are fetched (see downloads.py). With `split`, only its rows are kept.
    Raises CaptioningError when the name is unknown, files are missing or faulty (all faults in one message), or the
    split is empty.
    """
    readers = {"flickr8k": read_flickr8k, "flickr30k": read_flickr30k, "coco": read_coco, "folder": read_folder}
    if name == "pocket":
        dataset = _pocket(data_dir, **options)
    elif name not in readers:
        raise unknown_name("dataset", name, ["pocket", *readers])
    elif name == "folder" and data_dir is None:
        raise CaptioningError('load_dataset("folder", ...) needs data_dir, the folder with the photos and the CSV.')
    else:
        folder = Path(data_dir) if data_dir is not None else ROOT / "data" / name
        if download and name != "folder":
            from helpers.downloads import fetch_dataset

            folder = fetch_dataset(name, folder)
        if not folder.is_dir():
            offer = f' Call load_dataset("{name}", download=True), or see data/README.md.' if name != "folder" else ""
            raise CaptioningError(f"There is no folder {shown(folder)} with the dataset {name!r}.{offer}")
        dataset = readers[name](folder, **options)
    return dataset.only(split) if split is not None else dataset


def _pocket(data_dir: str | os.PathLike | None, **options) -> Dataset:
    from helpers import scenes

    named = "".join(f"-{name}{value}" for name, value in sorted(options.items()))
    folder = Path(data_dir) if data_dir is not None else cache_dir() / f"pocket{named}"
    if options or data_dir is None or not (folder / "captions.txt").is_file():
        scenes.generate(folder, **options)  # does nothing when the same set is there already
    return read_flickr8k(folder, name="pocket")


def read_flickr8k(folder: str | os.PathLike, name: str = "flickr8k", seed: int = 0) -> Dataset:
    """Returns Flickr8k from `folder` in either layout, with the official splits where their lists are present.

    Kaggle's layout: captions.txt (a CSV) and Images/. The original one: Flickr8k.token.txt, Flickr_8k.trainImages.txt
    and its sisters, and Flicker8k_Dataset/; the text files may also be in Flickr8k_text/. Without any list the images
    are split at random, 6,000 to 1,000 to 1,000 in proportion (`seed`). Hodosh et al. 2013, JAIR 47.
    """
    folder = Path(folder)
    captions = _find(folder, ["captions.txt", "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.csv"])
    images = _find(folder, ["Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset",
                            "Flickr8k_Dataset"], directory=True)
    lists = {split: [folder / f"Flickr_8k.{split}Images.txt", folder / "Flickr8k_text" / f"Flickr_8k.{split}Images.txt"]
             for split in ORDER}
    faults = Faults(captions, lenient=True)
    parse = files.parse_csv if captions.name.startswith("captions") else files.parse_tokens
    rows = parse(captions, faults)
    splits = _official(lists, folder / "dataset_flickr8k.json", faults) or _named_in(rows, faults)
    return make_dataset(name, rows, images, faults, splits, seed)


def read_flickr30k(folder: str | os.PathLike, seed: int = 0) -> Dataset:
    """Returns Flickr30k from `folder`: results.csv with bars, or results_20130124.token; images in a folder beside it.

    Splits come from train.txt, val.txt and test.txt (names with or without .jpg), or else from Karpathy's
    dataset_flickr30k.json; without them the images are split at random, 29,000 to 1,014 to 1,000 in proportion.
    Young et al. 2014, TACL 2.
    """
    folder = Path(folder)
    images = _find(folder, ["flickr30k_images/flickr30k_images", "flickr30k_images", "flickr30k-images", "Images",
                            "images"], directory=True)
    captions = _find(folder, [deep + name for name in ("results.csv", "results_20130124.token", "captions.txt")
                              for deep in ("", "flickr30k_images/", "flickr30k/")])
    faults = Faults(captions, lenient=True)
    if captions.suffix == ".token":
        rows = files.parse_tokens(captions, faults)
    elif "|" in files.read_text(captions).split("\n", 1)[0]:
        rows = files.parse_pipes(captions, faults)
    else:
        rows = files.parse_csv(captions, faults)
    lists = {split: [folder / f"{stem}.txt", folder / "splits" / f"{stem}.txt"]
             for split, stem in zip(ORDER, ("train", "val", "test"), strict=True)}
    splits = _official(lists, folder / "dataset_flickr30k.json", faults, suffix=".jpg") or _named_in(rows, faults)
    return make_dataset("flickr30k", rows, images, faults, splits, seed, parts=(29000, 1014, 1000))


def read_coco(folder: str | os.PathLike) -> Dataset:
    """Returns COCO captions from `folder`: captions_*.json (there or in annotations/) and the image folders.

    With Karpathy's dataset_coco.json, its splits (restval counts as train), matched by image id, so that it serves the
    2014 and the 2017 files. Without it captions_train* is train and captions_val* is dev. An image's name is its path
    below `folder`, such as val2017/000000000139.jpg. Chen et al. 2015; Karpathy and Fei-Fei 2015.
    """
    folder = Path(folder)
    found = sorted([*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")])
    if not found:
        raise CaptioningError(f"There is no captions_*.json in {shown(folder)} or in its folder annotations/.")
    faults, rows = Faults(folder, lenient=True), []
    karpathy = folder / "dataset_coco.json"
    by_id = None
    if karpathy.is_file():
        by_id = {cocoid: split for cocoid, _, split, _ in files.parse_karpathy(karpathy, faults)}
    for path in found:
        part = path.stem.removeprefix("captions_")  # train2014, val2017, ...
        place = next((p for p in (part, f"images/{part}", "images") if (folder / p).is_dir()), ".")
        usual = "train" if part.startswith("train") else "dev" if part.startswith("val") else ""
        for identity, row in files.parse_coco(path, faults):
            image = row.image if place == "." else f"{place}/{row.image}"
            split = usual if by_id is None else by_id.get(identity, "")
            rows.append(row._replace(image=image, split=split, where=f"{part} {row.where}"))
    return make_dataset("coco", rows, folder, faults, {row.image: row.split for row in rows})


def read_folder(folder: str | os.PathLike, csv: str | os.PathLike | None = None, seed: int = 0) -> Dataset:
    """Returns any folder of photos with a CSV of the columns image, caption and, if wanted, split (train, dev, test).

    `csv` is looked for in the folder when not named. Photos lie in the folder or in its folder images/. Without a split
    column the images are split at random, 80 to 10 to 10. Photos without a caption are named in `notes`.
    """
    folder = Path(folder)
    path = folder / csv if csv is not None else _only_csv(folder)
    faults = Faults(path)
    rows = files.parse_csv(path, faults)
    places = [folder / place for place in ("", "images", "Images") if (folder / place).is_dir()]
    if not places:
        raise CaptioningError(f"There is no folder {shown(folder)}.")
    names = {row.image for row in rows}
    images = max(places, key=lambda place: len(names & names_in(place)))
    splits = _named_in(rows, faults)
    return make_dataset("folder", rows, images, faults, splits, seed, parts=(0.8, 0.1, 0.1), partial=False)


def _official(lists: Mapping[str, Iterable[Path]], karpathy: Path, faults: Faults, suffix: str = "") -> dict[str, str]:
    """Returns image -> split from the list files, or else from Karpathy's JSON file; empty when there are neither."""
    splits: dict[str, str] = {}
    for split, places in lists.items():
        path = next((place for place in places if place.is_file()), None)
        for image in files.parse_list(path) if path else ():
            image = image if image.lower().endswith(SUFFIXES) or not suffix else image + suffix
            if splits.setdefault(image, split) != split:
                faults.add(f"image in the lists {splits[image]!r} and {split!r}", image)
    if not splits and karpathy.is_file():
        splits = {image: split for _, image, split, _ in files.parse_karpathy(karpathy, faults)}
    return splits


def _named_in(rows: list[Row], faults: Faults) -> dict[str, str]:
    """Returns image -> split as the rows themselves name it; empty when no row does."""
    splits = {row.image: row.split for row in rows if row.split}
    for image in sorted({row.image for row in rows if splits and splits.get(row.image, "") != row.split}):
        faults.add("image whose rows name different splits", image)
    return splits


def _find(folder: Path, names: Iterable[str], directory: bool = False) -> Path:
    names = list(names)
    for name in names:
        path = folder / name
        if path.is_dir() if directory else path.is_file():
            return path
    raise CaptioningError(f"{shown(folder)} holds none of {', '.join(dict.fromkeys(names))}. See data/README.md.")


def _only_csv(folder: Path) -> Path:
    if (folder / "captions.csv").is_file():
        return folder / "captions.csv"
    found = sorted([*folder.glob("*.csv"), *folder.glob("captions.txt")])
    if len(found) != 1:
        what = "no CSV file" if not found else f"{len(found)} CSV files; name one with csv="
        raise CaptioningError(f"{shown(folder)} holds {what}. Expected: captions.csv with the columns image, caption.")
    return found[0]
