"""The web page's logic, without a browser: what is chosen, what is shown, what a stranger's file can do to it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

import app
from helpers.captioner import Captioner, available
from helpers.official import OFFICIAL
from tests.nasty_images import bad_files, encode
from tests.test_captioner import write


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of an untrained captioner with attention, which the page begins with."""
    folder = write(tmp_path_factory.mktemp("toy") / "toy")
    before, sys.argv = sys.argv, ["app.py", "--checkpoint", str(folder)]
    st.cache_resource.clear()
    yield folder
    sys.argv = before
    st.cache_resource.clear()


@pytest.fixture
def page(root: Path, toy) -> AppTest:
    """The page as a new visitor finds it."""
    return AppTest.from_file(str(root / "app.py"), default_timeout=120).run()


def upload(page: AppTest, *files: tuple[str, bytes]) -> AppTest:
    """Uploads files and runs the page."""
    page.file_uploader[0].set_value([(name, data, "image/jpeg") for name, data in files])
    return page.run()


def captions(page: AppTest) -> list[str]:
    """Returns the captions on the page, top down. Checks that nothing failed."""
    assert not page.exception
    return [element.value for element in page.subheader]


def pick(page: AppTest, name: str) -> AppTest:
    """Clicks a sample."""
    return page.button(key=f"pick-{name}").click().run()


def test_an_empty_page_offers_every_way_in(page, samples, toy) -> None:
    assert captions(page) == [] and not page.error
    assert {f"pick-{path.stem}" for path in samples} == {b.key for b in page.button if str(b.key).startswith("pick-")}
    assert page.sidebar.selectbox[0].value == str(toy)
    assert page.sidebar.selectbox[0].options == ["toy", *available(), *OFFICIAL]


def test_a_clicked_sample_gets_the_caption_of_the_front_door(page, toy, samples) -> None:
    expected = Captioner.load(toy).caption([samples[0]])[0]
    pick(page, samples[0].stem)
    assert captions(page) == [expected.caption or "(it said nothing)"]
    rows = [(expected.caption, expected.log_prob), *expected.alternatives]
    assert list(page.table[0].value["sure, per word"].items()) == [(words, app.sure(words, p)) for words, p in rows]
    assert app.sure("a dog runs", 4 * -0.6931) == "50%"  # three words and the end
    pictures = [image for image in page.get("image") if image.proto.imgs[0].caption]
    assert [p.proto.imgs[0].caption for p in pictures] == [word for word in expected.words if word]


def test_uploads_and_samples_stand_together_and_go_together(page, samples) -> None:
    upload(page, *((path.name, path.read_bytes()) for path in samples[:2]))
    pick(page, samples[2].stem)
    pick(page, samples[2].stem)  # the same once more
    assert len(captions(page)) == 3
    next(b for b in page.button if b.label == "Remove all photos").click().run()
    assert captions(page) == []


def test_decoding_settings_reach_the_model(page, toy, samples) -> None:
    captioner, image = Captioner.load(toy), [samples[4]]
    pick(page, samples[4].stem)
    page.sidebar.radio[0].set_value("Beam search").run()
    page.sidebar.slider[0].set_value(1)
    page.sidebar.text_input[0].set_value("the dog").run()
    expected = captioner.caption(image, method="greedy", prompt="the dog")[0]
    assert captions(page) == [expected.caption] and expected.caption.startswith("the dog")
    page.sidebar.text_input[0].set_value("a zeppelin").run()
    assert len(page.error) == 1 and "zeppelin" in page.error[0].value and captions(page) == []
    page.sidebar.text_input[0].set_value("").run()
    page.sidebar.radio[0].set_value("Sampling").run()
    assert len(page.table[0].value) == 5  # as many as were drawn


def test_bad_files_get_one_clear_message_each_and_the_page_lives(page, samples) -> None:
    good, bad = samples[0].read_bytes(), bad_files()
    some = [(f"{n}.jpg", data) for n, data in enumerate(bad.values())][:19]
    upload(page, ("good.jpg", good), *some)
    assert len(captions(page)) == 1 and len(page.error) == len(some)
    assert not any(word in error.value for error in page.error for word in ("Traceback", "/tmp", "helpers"))


def test_a_stranger_cannot_write_into_the_page(page) -> None:
    name = "![x](http://example.com/spy.png) <img src=x onerror=alert(1)> :red[a] $x$ `b`.jpg"
    upload(page, (name, b"nothing"), (name, encode(Image.new("RGB", (9, 9)), "PNG")))
    for text in (page.error[0].value, next(c.value for c in page.caption if "·" in c.value)):
        active = re.sub(r"\\.", "", text)  # what Markdown is left with once escaped characters are taken out
        assert not set("[]<>$`:!()") & set(active.split("·")[0]), text


def test_the_page_listens_on_this_machine_alone_and_shows_no_traceback(root) -> None:
    config = tomllib.loads((root / ".streamlit/config.toml").read_text())
    assert config["server"]["address"] == "127.0.0.1" and config["client"]["showErrorDetails"] == "none"
    assert config["server"]["maxUploadSize"] == 25 and config["browser"]["gatherUsageStats"] is False
