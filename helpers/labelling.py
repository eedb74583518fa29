"""Captions for one's own photos, written in a notebook: a photo, a line of text, Save. The result is a CSV.

`LabellingCell(folder).show()` in a cell is all. What is saved is on disk at once, and a later session goes on where
this one stopped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.caption_files import MAX_WORDS, read_text
from helpers.files import CaptioningError, atomic_write
from helpers.images import SUFFIXES, natural_key, open_image, shown

SIDE = 480  # pixels of the photo in the notebook, on its longer side


class Labels:
    """The CSV beside the photos of a folder: a row a caption, with the columns image and caption.

    Rows and columns that are there already stay as they are. Raises CaptioningError when the folder has no photos, or
    the CSV lacks one of the two columns.
    """

    def __init__(self, folder: str | Path, name: str = "captions.csv"):
        self.folder, self.path = Path(folder), Path(folder) / name
        if not self.folder.is_dir():
            raise CaptioningError(f"There is no folder {shown(self.folder)}. Name the folder that holds the photos.")
        named = (path for path in self.folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
        self.images = sorted((path.name for path in named), key=natural_key)
        if not self.images:
            raise CaptioningError(f"{shown(self.folder)} holds no photos to label.")
        self.columns, self.rows = ["image", "caption"], []
        if self.path.exists():
            reader = csv.DictReader(io.StringIO(read_text(self.path)[0], newline=""))
            self.columns, self.rows = list(reader.fieldnames or self.columns), list(reader)
            if not {"image", "caption"} <= set(self.columns):
                raise CaptioningError(
                    f"{shown(self.path)} has the columns {', '.join(self.columns)}; expected image and caption."
                )

    def captions(self, image: str) -> list[str]:
        """Returns what was written of a photo so far."""
        return [row["caption"] for row in self.rows if row["image"] == image]

    def left(self) -> list[str]:
        """Returns the photos without a caption, in order."""
        done = {row["image"] for row in self.rows}
        return [image for image in self.images if image not in done]

    def add(self, image: str, caption: str) -> None:
        """Writes one more caption of a photo to disk. Raises CaptioningError when it cannot be used."""
        caption = " ".join(caption.split())
        if image not in self.images:
            raise CaptioningError(f"{shown(self.folder)} has no photo {image!r}.")
        if not caption:
            raise CaptioningError("The caption is empty. Write what the photo shows, or skip it.")
        if len(caption.split()) > MAX_WORDS:
            raise CaptioningError(f"The caption has more than {MAX_WORDS} words. Say it in one sentence.")
        if caption in self.captions(image):
            raise CaptioningError("This photo has this caption already. Say it in other words, or go on.")
        beside = next((row for row in self.rows if row["image"] == image), {})  # a split column holds for all its rows
        row = {column: beside.get(column, "") for column in self.columns} | {"image": image, "caption": caption}
        self._write([*self.rows, row])

    def remove(self, image: str) -> None:
        """Takes back the last caption of a photo, if there is one."""
        places = [place for place, row in enumerate(self.rows) if row["image"] == image]
        if places:
            self._write([row for place, row in enumerate(self.rows) if place != places[-1]])

    def _write(self, rows: list[dict]) -> None:
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self.rows = rows


class LabellingCell:
    """A photo, a text box and buttons in a notebook cell.

    suggest: called with the photo's path, returns a caption to begin with, for example a captioner's; what is right in
    it need not be typed. `box` is the widget; `show()` displays it. It opens at the first photo without a caption.
    """

    def __init__(self, folder: str | Path, name: str = "captions.csv", suggest: Callable[[Path], str] | None = None):
        import ipywidgets as widgets

        self.labels, self.suggest = Labels(folder, name), suggest
        left = self.labels.left()
        self.place = self.labels.images.index(left[0]) if left else 0
        self.progress, self.photo = widgets.HTML(), widgets.Image(format="jpeg")
        self.text = widgets.Text(description="Caption:", placeholder="what the photo shows, in one sentence")
        self.text.layout.width = "95%"
        self.save, self.back, self.skip, self.undo = (
            widgets.Button(description=word, tooltip=tip)
            for word, tip in (
                ("Save", "write the caption and go to the next photo"), ("Back", "the photo before"),
                ("Next", "the photo after, without saving"), ("Undo", "take back this photo's last caption"),
            )
        )  # fmt: skip
        self.message = widgets.HTML()
        self.save.button_style = "primary"
        self.save.on_click(lambda _: self._save())
        self.back.on_click(lambda _: self._go(-1))
        self.skip.on_click(lambda _: self._go(1))
        self.undo.on_click(lambda _: self._undo())
        buttons = widgets.HBox([self.save, self.back, self.skip, self.undo])
        self.box = widgets.VBox([self.progress, self.photo, self.text, buttons, self.message])
        self._draw()

    @property
    def image(self) -> str:
        """The name of the photo that is shown."""
        return self.labels.images[self.place]

    def show(self) -> None:
        """Displays the cell."""
        from IPython.display import display

        display(self.box)

    def _save(self) -> None:
        try:
            self.labels.add(self.image, self.text.value)
        except (CaptioningError, OSError) as error:
            self._say(str(error))
            return
        self._go(1)

    def _undo(self) -> None:
        self.labels.remove(self.image)
        self._draw()

    def _go(self, step: int) -> None:
        self.place = (self.place + step) % len(self.labels.images)
        self._draw()

    def _draw(self) -> None:
        from html import escape

        self._say("")
        path, before = self.labels.folder / self.image, self.labels.captions(self.image)
        done, total = len(self.labels.images) - len(self.labels.left()), len(self.labels.images)
        written = "".join(f"<li>{escape(caption)}</li>" for caption in before)
        self.progress.value = f"<b>{escape(self.image)}</b>, {done} of {total} photos have a caption<ul>{written}</ul>"
        try:
            self.photo.value = _jpeg(path)
            self.text.value = self.suggest(path) if self.suggest and not before else ""
        except CaptioningError as error:  # a broken file: say so and let the reader go on
            self.photo.value, self.text.value = b"", ""
            self._say(str(error))

    def _say(self, text: str) -> None:
        from html import escape

        self.message.value = f'<span role="alert">{escape(text)}</span>' if text else ""


def suggestions(captioner: Any) -> Callable[[Path], str]:
    """Returns a function for `LabellingCell(suggest=...)`: what a captioner says of a photo."""

    def suggest(path: Path) -> str:
        return captioner.caption([path])[0].caption or ""

    return suggest


def _jpeg(path: Path) -> bytes:
    picture = open_image(path)
    picture.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=85)
    return packed.getvalue()
