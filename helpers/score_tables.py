"""Score files in, score tables out: `image<TAB>caption` lines; Markdown, CSV and JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from helpers.errors import CaptioningError, unknown_name
from helpers.files import atomic_write, write_json

_NUMBERED = re.compile(
    r"(\.\w{2,5})#\d+$"
)  # Flickr8k.token.txt calls an image's captions photo.jpg#0, photo.jpg#1, ...


def read_hypotheses(path: str | Path) -> dict[str, str]:
    """Returns image -> caption from `image<TAB>caption` lines. A caption may be empty: a model may say nothing.

    Raises CaptioningError naming the file and line: no tab, or a second caption for an image.
    """
    captions: dict[str, str] = {}
    for number, image, caption in _lines(path):
        if image in captions:
            raise CaptioningError(f"{path}, line {number}: a second caption for {image!r}; give one an image.")
        captions[image] = caption
    return captions


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Returns image -> its captions from `image<TAB>caption` lines that repeat the image (`image#0` is understood).

    Raises CaptioningError naming the file and line: no tab, or an empty caption.
    """
    references: dict[str, list[str]] = {}
    for number, image, caption in _lines(path):
        if not caption:
            raise CaptioningError(
                f"{path}, line {number}: the reference caption of {image!r} is empty. Remove the line."
            )
        references.setdefault(_NUMBERED.sub(r"\1", image), []).append(caption)
    return references


def write_hypotheses(path: str | Path, captions: Mapping[str, str]) -> None:
    """Writes `image<TAB>caption` lines, whole or not at all. Raises CaptioningError on a name with a tab or newline."""
    for image in captions:
        if re.search(r"[\t\n\r]", image):
            raise CaptioningError(f"The image name {image!r} has a tab or a line break; rename the file.")
    with atomic_write(path) as temporary:
        lines = (f"{image}\t{' '.join(caption.split())}\n" for image, caption in captions.items())
        temporary.write_text("".join(lines), encoding="utf-8")


def _lines(path: str | Path):
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaptioningError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise CaptioningError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    found = False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        image, tab, caption = line.partition("\t")
        if not tab or not image.strip():
            raise CaptioningError(f"{path}, line {number}: expected image<TAB>caption, got {line[:80]!r}.")
        found = True
        yield number, image.strip(), caption.strip()
    if not found:
        raise CaptioningError(f"{path} has no captions. Expected image<TAB>caption lines.")


def table(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None):
    """Returns a pandas DataFrame, a row a model: the scores of `rows` (model -> metric -> score) in their order.

    `intervals` (model -> metric -> (low, high)) adds the columns "METRIC low" and "METRIC high" beside each score.
    """
    import pandas as pd

    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    data = []
    for model, scores in rows.items():
        row: dict = {"model": model}
        for metric in metrics:
            row[metric] = scores.get(metric)
            if intervals and any(metric in of_model for of_model in intervals.values()):
                low, high = intervals.get(model, {}).get(metric, (None, None))
                row |= {f"{metric} low": low, f"{metric} high": high}
        data.append(row)
    return pd.DataFrame(data)


def markdown(rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None, digits: int = 3) -> str:
    """Returns the same table as Markdown; an interval stands behind its score in brackets, a dash for no score."""
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))

    def cell(model: str, metric: str) -> str:
        value = rows[model].get(metric)
        if value is None:
            return "–"
        if not isinstance(value, float):
            return str(value).replace("|", "\\|")
        low_high = (intervals or {}).get(model, {}).get(metric)
        behind = f" [{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]" if low_high else ""
        return f"{value:.{digits}f}{behind}"

    lines = [f"| model | {' | '.join(metrics)} |", f"| --- |{' ---: |' * len(metrics)}"]
    lines += [
        f"| {str(model).replace('|', chr(92) + '|')} | {' | '.join(cell(model, metric) for metric in metrics)} |"
        for model in rows
    ]
    return "\n".join(lines)


def save_table(path: str | Path, rows: Mapping[str, Mapping], intervals: Mapping[str, Mapping] | None = None) -> Path:
    """Writes the table as its suffix says: .csv, .json or .md. Raises CaptioningError on another suffix."""
    path = Path(path)
    if path.suffix == ".json":
        scores = {model: dict(scores) for model, scores in rows.items()}
        write_json(path, {"scores": scores, **({"intervals": intervals} if intervals else {})})
    elif path.suffix == ".csv":
        with atomic_write(path) as temporary:
            table(rows, intervals).to_csv(temporary, index=False)
    elif path.suffix == ".md":
        with atomic_write(path) as temporary:
            temporary.write_text(markdown(rows, intervals) + "\n", encoding="utf-8")
    else:
        raise unknown_name("kind of table", path.suffix, [".csv", ".json", ".md"])
    return path
