"""The web page's logic, without a browser: what is chosen, what is shown, what a stranger's file can do to it."""

from __future__ import annotations

import csv
import io
import math
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from helpers import web_page
from helpers.captioner import Caption, Captioner, available
from helpers.files import CHECKPOINTS, read_json
from helpers.web_limits import LIMITS
from tests.nasty_images import bad_files, encode, png
from tests.test_captioner import write

SETTINGS = {"beam_size": 3, "max_length": 8}  # the toy checkpoint's own


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
    return [element.value for element in page.code]


def pick(page: AppTest, name: str) -> AppTest:
    """Clicks a sample."""
    return page.button(key=f"pick-{name}").click().run()


def test_an_empty_page_offers_every_way_in(page, samples) -> None:
    assert captions(page) == [] and not page.error
    assert page.title[0].value == "Caption a photo"
    assert {f"pick-{path.stem}" for path in samples} == {b.key for b in page.button if str(b.key).startswith("pick-")}
    assert len(page.file_uploader) == len(page.chat_input) == 1
    assert page.sidebar.selectbox[0].value == "toy"


def test_a_clicked_sample_gets_the_caption_of_the_front_door(page, toy, samples) -> None:
    expected = Captioner.load(toy).caption([samples[0]])[0]
    pick(page, samples[0].stem)
    assert captions(page) == [expected.caption]
    (table,) = (element.value for element in page.html if "<table" in element.value)
    for text, log_prob in [(expected.caption, expected.log_prob), *expected.alternatives]:
        assert f"<td>{text}</td><td>{web_page.percent(math.exp(log_prob))}</td>" in table
    pictures = [image for image in page.get("image") if image.proto.imgs[0].caption]
    assert [p.proto.imgs[0].caption for p in pictures] == [word for word in expected.words if word]


def test_uploads_and_samples_and_pasted_photos_stand_together(page, samples) -> None:
    upload(page, *((path.name, path.read_bytes()) for path in samples[:2]))
    assert len(captions(page)) == 2
    pick(page, samples[2].stem)
    pick(page, samples[2].stem)  # the same once more
    assert len(captions(page)) == 3
    page.chat_input[0].upload("image.png", samples[3].read_bytes()).run()
    assert len(captions(page)) == 4
    names = [element.value for element in page.caption]
    assert next(name for name in names if "·" in name).startswith("image\\.png")  # the latest is on top
    next(b for b in page.button if b.label == "Remove all photos").click().run()
    assert captions(page) == [] and not page.download_button


def test_pasted_text_is_no_photo(page) -> None:
    page.chat_input[0].set_value("a dog").run()
    assert "That was text" in page.warning[0].value and captions(page) == []


def test_nothing_is_captioned_twice(page, toy, samples, monkeypatch) -> None:
    counts, caption = [], Captioner.caption
    monkeypatch.setattr(
        Captioner, "caption", lambda self, items, **k: counts.append(len(items)) or caption(self, items, **k)
    )
    pick(page, samples[0].stem)
    pick(page, samples[1].stem)
    page.run()
    assert counts == [1, 1]
    next(s for s in page.sidebar.slider if s.label == "Beam size").set_value(2).run()
    assert counts == [1, 1, 2]  # both at once
    next(s for s in page.sidebar.slider if s.label == "Beam size").set_value(3).run()
    assert counts == [1, 1, 2]


def test_decoding_settings_reach_the_model(page, toy, samples) -> None:
    captioner, image = Captioner.load(toy), [samples[4]]
    pick(page, samples[4].stem)
    sliders = {slider.label: slider for slider in page.sidebar.slider}
    sliders["Beam size"].set_value(1)
    sliders["Repetition penalty"].set_value(1.5)
    page.sidebar.text_input[0].set_value("the dog").run()
    expected = captioner.caption(image, method="greedy", repetition_penalty=1.5, prompt="the dog")[0]
    assert captions(page) == [expected.caption] and expected.caption.startswith("the dog")
    page.sidebar.text_input[0].set_value("").run()
    page.sidebar.radio[0].set_value("Sampling").run()
    drawn = {"method": "sample", "top_p": 0.9, "temperature": 1.0, "samples": 5, "repetition_penalty": 1.5}
    for seed in (0, 1):
        assert captions(page) == [captioner.caption(image, seed=seed, **drawn)[0].caption or "(it said nothing)"]
        next(b for b in page.sidebar.button if b.label == "Draw again").click().run()


@pytest.mark.parametrize("name", available())
def test_every_shipped_captioner_can_be_chosen(page, name) -> None:
    page.sidebar.selectbox[0].set_value(name).run()
    assert not page.exception and page.sidebar.selectbox[0].value == name
    usual = read_json(CHECKPOINTS / name / "config.json")["decoding"]["beam_size"]
    assert next(slider for slider in page.sidebar.slider if slider.label == "Beam size").value == usual


def test_a_prompt_the_model_does_not_know_is_said_once(page, samples) -> None:
    pick(page, samples[0].stem)
    page.sidebar.text_input[0].set_value("a zeppelin").run()
    assert len(page.error) == 1 and "zeppelin" in page.error[0].value and captions(page) == []
    page.sidebar.text_input[0].set_value("").run()
    assert not page.error and len(captions(page)) == 1


def test_bad_files_get_one_clear_message_each_and_the_page_lives(page, samples) -> None:
    good, bad = samples[0].read_bytes(), bad_files()
    files = [(f"{n}.jpg", data) for n, data in enumerate(bad.values())]
    for some in (files[19:], files[:19]):  # the page takes twenty at once
        upload(page, ("good.jpg", good), *some)
        assert len(captions(page)) == 1 and len(page.error) == len(some) > 0
    assert not any(word in error.value for error in page.error for word in ("Traceback", "/tmp", "/work", "helpers"))
    upload(
        page,
        ("good.jpg", good),
        ("broken.jpg", good[:3000]),
        ("notes.jpg", b"A dog."),
        ("big.png", png(10_000, 10_000, 1)),
    )
    broken, notes, big = (element.value.replace("\\", "") for element in page.error)
    assert "broken.jpg cannot be decoded" in broken and "it holds text" in notes and "10000 x 10000" in big
    assert len(captions(page)) == 1


def test_too_many_photos(page) -> None:
    small = encode(Image.new("RGB", (8, 8), "red"), "PNG")
    upload(page, *((f"{number}.png", small) for number in range(23)))
    assert len(captions(page)) == 20 and "20 of 23" in page.warning[0].value


def test_a_stranger_cannot_write_into_the_page(page) -> None:
    name = "![x](http://example.com/spy.png) <img src=x onerror=alert(1)> :red[a] $x$ `b`.jpg"
    upload(page, (name, b"nothing"), (name, encode(Image.new("RGB", (9, 9)), "PNG")))
    texts = [page.error[0].value, next(c.value for c in page.caption if "·" in c.value)]
    for text in texts:
        active = re.sub(r"\\.", "", text)  # what Markdown is left with once escaped characters are taken out
        assert not set("[]<>$`:!()") & set(active.split("·")[0]), text


def test_all_visitors_share_one_captioner(root, toy, page, samples, monkeypatch) -> None:
    pick(page, samples[0].stem)
    monkeypatch.setattr(Captioner, "load", lambda *a, **k: pytest.fail("a captioner was loaded a second time"))
    other = AppTest.from_file(str(root / "app.py"), default_timeout=120).run()
    assert captions(pick(other, samples[0].stem)) == captions(page)


def test_a_bad_checkpoint_is_reported(root, toy, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--checkpoint", str(tmp_path)])
    st.cache_resource.clear()
    page = AppTest.from_file(str(root / "app.py"), default_timeout=120).run()
    assert not page.exception and "says why" in page.error[0].value and str(tmp_path) not in page.error[0].value
    assert str(tmp_path) in capfd.readouterr().err  # who started the page may know the folder
    st.cache_resource.clear()


def test_the_page_listens_on_this_machine_alone_and_shows_no_traceback(root) -> None:
    config = tomllib.loads((root / ".streamlit/config.toml").read_text())
    assert config["server"]["address"] == "127.0.0.1" and config["client"]["showErrorDetails"] == "none"
    assert config["server"]["maxUploadSize"] * 10**6 == LIMITS.photo_bytes
    assert config["server"]["maxWidgetStateSize"] == 1  # a visitor's settings are kept, as his photos are
    assert config["browser"]["gatherUsageStats"] is False


# -- the pieces ---------------------------------------------------------------------------------------------------


def test_csv_holds_every_photo() -> None:
    made = [Caption('a "b",c.jpg', "a dog, running", -1.5, "m"), Caption("bad.jpg", None, None, "m", error="no\nimage")]
    rows = list(csv.DictReader(io.StringIO(web_page.as_csv(made))))
    assert rows[0] == {
        "image": 'a "b",c.jpg',
        "caption": "a dog, running",
        "log_prob": "-1.5000",
        "model": "m",
        "error": "",
    }
    assert rows[1]["error"] == "no\nimage" and rows[1]["caption"] == ""


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1.0, "100%"), (0.42, "42%"), (0.05, "5.0%"), (0.0002, "1 in 5,000"), (2.13e-7, "1 in 4.7 million"), (0.0, "0%"),
     (1e-9, "1 in 1 billion"), (5e-14, "1 in 20 trillion")],
)  # fmt: skip
def test_probabilities_as_people_read_them(probability, text) -> None:
    assert web_page.percent(probability) == text


def test_the_table_escapes_captions_and_measures_bars() -> None:
    table = web_page.candidates_table([("<b>a", math.log(0.1)), ("c", math.log(0.2))])
    assert "<b>" not in table and "&lt;b&gt;a" in table and "50.0%" in table and "100.0%" in table


def test_where_a_model_looked_in_words() -> None:
    grid = np.full((7, 7), 1 / 49)
    assert web_page.where(grid.flatten()) == "all over"
    for (row, column), words in {(0, 0): "upper left", (3, 3): "middle", (6, 3): "lower", (3, 6): "right"}.items():
        looked = grid.copy()
        looked[row, column] = 1
        assert web_page.where(looked.flatten()) == words


def test_gaze_has_a_picture_and_a_text_for_each_word() -> None:
    attention = np.full((3, 4), 0.1)
    attention[0, 0] = attention[1, 3] = 0.7
    seen = web_page.gaze(Image.new("RGB", (20, 20), "white"), ["dog", "runs", ""], attention)
    assert [word for _, word, _ in seen] == ["dog", "runs"]
    first = np.asarray(seen[0][0], dtype=int)
    assert first[:20, :20].mean() > first[-20:, -20:].mean() + 50
    assert seen[0][2] == "For the word dog it looked at the upper left."


def test_every_sample_has_a_description(samples) -> None:
    found = web_page.samples()
    assert [path.name for path, _, _ in found] == [path.name for path in samples]
    assert all(len(text) > 20 and picture.size == (208, 208) for _, text, picture in found)
