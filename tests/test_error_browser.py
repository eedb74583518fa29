"""The error browser: the right photos, in a figure and on a page that shows captions as text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from helpers.error_browser import browse, browser_figure, browser_page
from helpers.files import CaptioningError
from helpers.metrics import score_images
from tests.toy_captions import GOOD, REFERENCES, WEAK


def photos() -> dict[str, Image.Image]:
    return {image: Image.new("RGB", (40, 30), "green") for image in REFERENCES}


def test_the_browser_ranks_by_the_score_of_each_photo() -> None:
    mixed = {image: GOOD[image] if image.startswith("dog") else WEAK[image] for image in REFERENCES}
    groups = browse(REFERENCES, {"mixed": mixed, "weak": WEAK}, count=5)
    assert list(groups) == ["best", "worst", "most different"]
    best, worst = ([photo["scores"]["mixed"] for photo in groups[name]] for name in ("best", "worst"))
    assert best == sorted(best, reverse=True) and worst == sorted(worst) and best[-1] > worst[-1]
    for photo in groups["most different"]:
        assert photo["image"].startswith("dog") and photo["scores"]["mixed"] > photo["scores"]["weak"]
        assert photo["captions"] == {"mixed": GOOD[photo["image"]], "weak": WEAK[photo["image"]]}
    each = score_images(REFERENCES, mixed, ["CIDEr"])
    assert best[0] == pytest.approx(each.per_image()["CIDEr"].max())
    assert list(browse(REFERENCES, {"weak": WEAK}, "BLEU-4", 3)) == ["best", "worst"]


def test_the_browser_names_what_it_cannot_do() -> None:
    with pytest.raises(CaptioningError, match="one or two models, not 3"):
        browse(REFERENCES, {"a": WEAK, "b": WEAK, "c": WEAK})
    with pytest.raises(CaptioningError, match="no one score an image"):
        browse(REFERENCES, {"a": WEAK}, "BLEU")
    with pytest.raises(CaptioningError, match="Known: best, worst"):
        browser_figure(browse(REFERENCES, {"a": WEAK}), photos(), "wurst")


def test_the_figure_shows_every_photo_with_both_captions() -> None:
    groups = browse(REFERENCES, {"good": GOOD, "weak": WEAK}, count=3)
    figure = browser_figure(groups, photos(), "best")
    assert len([axes for axes in figure.axes if axes.images]) == 3
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts).replace("\n", " ")
    for photo in groups["best"]:
        assert f"good ({photo['scores']['good']:.2f}): {GOOD[photo['image']]}" in words


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images, self.links, self.scripts, self.text = [], [], 0, []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        self.scripts += tag == "script"
        self.links += [given[name] for name in ("src", "href") if name in given]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_one_file_and_shows_captions_as_text(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script> & "quoted"'
    captions = {**WEAK, "dog-runs.jpg": nasty}
    groups = browse(REFERENCES, {"good": GOOD, "<b>weak": captions}, count=len(REFERENCES))
    pictures = photos()
    del pictures["cat-sits.jpg"]
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pictures["bird-eats.jpg"] = tmp_path / "broken.jpg"
    page = Page()
    page.feed(browser_page(tmp_path / "page.html", groups, pictures).read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert page.scripts == 0 and text.count(nasty) == 3 and text.count("<b>weak") == 3 * len(REFERENCES)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert len(page.images) == 3 * (len(REFERENCES) - 2) and all(image["alt"] for image in page.images)
    assert "cat-sits.jpg is missing." in text and text.count("broken.jpg") == 3
