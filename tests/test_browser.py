"""The web page in a real browser: Playwright drives Chromium. Skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.captioner import DEFAULT_MODEL, Captioner, available
from scripts.screenshot import browser, page_server
from tests.nasty_images import png

pytestmark = pytest.mark.browser
WITHOUT_A_NAME = """() => [...document.querySelectorAll('button, input, textarea, [role=slider], [role=combobox]')]
  .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.innerText.trim() || e.title
    || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)))
  .map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def server(chromium):
    """The address of the running page."""
    if DEFAULT_MODEL not in available():
        pytest.skip("data/checkpoints/ holds no captioner yet")
    with page_server() as address:
        yield address


@pytest.fixture(scope="module")
def chrome(chromium):
    with browser() as opened:
        yield opened


@pytest.fixture
def visit(chrome, server):
    """Opens the page: visit(width=…, theme=…) returns a tab. Checks that it is still alive in the end."""
    tabs = []

    def go(width: int = 1200, theme: str = "light"):
        tab = chrome.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        tab.set_default_timeout(120_000)
        tabs.append(tab)
        tab.goto(server)
        tab.get_by_role("heading", name="Caption a photo").wait_for()
        tab.wait_for_selector("[data-test-script-state=notRunning]")  # all of it is there, and nothing takes the focus
        return tab

    yield go
    for tab in tabs:
        assert tab.get_by_role("heading", name="Caption a photo").is_visible()
        assert tab.get_by_test_id("stException").count() == 0
        tab.close()


def upload(tab, *files: Path | tuple[str, bytes]) -> None:
    """Gives files to the upload field, as choosing them does."""
    given = [{"name": f.name, "mimeType": "image/jpeg", "buffer": f.read_bytes()} if isinstance(f, Path)
             else {"name": f[0], "mimeType": "image/jpeg", "buffer": f[1]} for f in files]  # fmt: skip
    tab.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(given)


def captions(tab, count: int) -> list[str]:
    """Waits for `count` captions and returns them."""
    tab.wait_for_function(f"document.querySelectorAll('[class*=st-key-caption] h3').length == {count}")
    tab.get_by_role("button", name="Download all as CSV").wait_for()
    return tab.locator("[class*=st-key-caption] h3").all_inner_texts()


def test_good_and_bad_photos(visit, samples) -> None:
    tab = visit()
    upload(tab, samples[0])
    expected = Captioner.load().caption(samples[:2])
    assert captions(tab, 1) == [expected[0].caption]
    broken = ("broken.jpg", samples[0].read_bytes()[:4000])
    bad = [broken, ("notes.jpg", b"A dog.\n"), ("huge.png", png(10_000, 10_000, 1))]
    upload(tab, samples[1], *bad)
    assert sorted(captions(tab, 2)) == sorted(caption.caption for caption in expected)
    errors = tab.get_by_test_id("stAlert").all_inner_texts()
    assert [name in error for error, (name, _) in zip(errors, bad, strict=True)] == [True] * 3
    tab.get_by_role("button", name="Remove all photos").click()
    tab.get_by_test_id("stAlert").first.wait_for(state="detached")
    upload(tab, samples[1])
    assert captions(tab, 1) == [expected[1].caption]


def test_keyboard_alone_is_enough(visit) -> None:
    tab = visit()
    tab.get_by_role("button", name="dog", exact=True).wait_for()
    for _ in range(200):  # the way round leads by the address bar, and begins anew where a part was drawn again
        tab.keyboard.press("Tab")
        tab.wait_for_timeout(50)
        if tab.evaluate("document.activeElement?.innerText?.trim()") == "chickens":
            break
    else:
        pytest.fail("Tab does not lead to the samples")
    tab.keyboard.press("Enter")
    assert captions(tab, 1)[0]
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download all as CSV").press("Enter")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "image,caption,log_prob,model,error" and lines[1].startswith("chickens.jpg,")


def test_what_a_screen_reader_needs(visit) -> None:
    tab = visit()
    tab.get_by_role("button", name="mariachi", exact=True).click()
    assert captions(tab, 1)[0]
    assert tab.evaluate("[...document.images].filter(i => !i.hasAttribute('alt')).length") == 0
    assert tab.evaluate(WITHOUT_A_NAME) == []
    assert tab.get_by_role("img", name="Musicians in black suits").count() == 1
    assert tab.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phones_width_light_and_dark(visit, theme) -> None:
    tab = visit(width=390, theme=theme)
    tab.get_by_role("button", name="kitten", exact=True).click()
    assert captions(tab, 1)[0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    box = tab.locator("[class*=st-key-caption] h3").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    background = tab.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    shade = int(background.split("(")[1].split(",")[0])
    assert (shade < 100) == (theme == "dark")
