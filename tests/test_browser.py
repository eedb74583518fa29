"""The web page in a real browser: Playwright drives Chromium. Skipped, with the reason, where there is none."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from helpers.captioner import DEFAULT_MODEL, Captioner, available
from scripts.screenshot import browser, page_server
from tests.nasty_images import png

pytestmark = pytest.mark.browser
PATIENCE = 120_000  # milliseconds
WITHOUT_A_NAME = """() => [...document.querySelectorAll('button, input, textarea, [role=slider], [role=combobox]')]
  .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.innerText.trim() || e.title
    || e.getAttribute('aria-labelledby') || (e.labels && e.labels.length)))
  .map(e => e.outerHTML.slice(0, 120))"""
PASTE = """(box, [data, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type: 'image/jpeg'}));
  box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def server(chromium):
    """The address of the running page."""
    if DEFAULT_MODEL not in available():
        pytest.skip("data/checkpoints/ holds no captioner yet")
    with page_server() as address:
        yield address


@pytest.fixture(scope="module")
def chrome(chromium):
    with browser(chromium) as opened:
        yield opened


@pytest.fixture
def visit(chrome, server):
    """Opens the page: visit(width=…, theme=…) returns a tab. Checks that it is still alive in the end."""
    tabs = []

    def go(width: int = 1200, theme: str = "light"):
        tab = chrome.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        tab.set_default_timeout(PATIENCE)
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
    tab.wait_for_function(f"document.querySelectorAll('[class*=st-key-caption] code').length == {count}")
    tab.get_by_role("button", name="Download all as CSV").wait_for()
    return tab.locator("[class*=st-key-caption] code").all_inner_texts()


def test_one_photo_after_the_other(visit, samples) -> None:
    """How long that takes is measured by benchmarks/page.py."""
    tab = visit()
    upload(tab, samples[0])
    expected = Captioner.load().caption(samples[:2])
    assert captions(tab, 1) == [expected[0].caption]
    upload(tab, samples[1])
    assert sorted(captions(tab, 2)) == sorted(caption.caption for caption in expected)


def test_ten_at_once_good_and_bad(visit, samples) -> None:
    tab = visit()
    broken = ("broken.jpg", samples[0].read_bytes()[:4000])
    bad = [broken, ("notes.jpg", b"A dog runs.\n"), ("huge.png", png(10_000, 10_000, 1))]
    upload(tab, *samples[:7], *bad)
    assert len(captions(tab, 7)) == 7
    errors = tab.get_by_test_id("stAlert").all_inner_texts()
    assert len(errors) == 3
    for error, name, words in zip(
        errors, bad, ("cannot be decoded", "it holds text", "64 million pixels"), strict=True
    ):
        assert name[0] in error and words in error and "Traceback" not in error
    upload(tab, samples[8])  # it goes on
    assert len(captions(tab, 8)) == 8


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (390, "dark")])
def test_too_much_is_said_and_the_rest_is_captioned(visit, samples, width, theme) -> None:
    tab = visit(width, theme)
    padded = samples[0].read_bytes() + bytes(24_000_000)
    for number in range(2):  # together they would be more than Playwright sends at once
        upload(tab, (f"{number}.jpg", padded))
        captions(tab, number + 1)
    upload(tab, ("2.jpg", padded))
    tab.get_by_test_id("stAlert").wait_for()
    upload(tab, samples[1])
    captions(tab, 3)
    (error,) = tab.get_by_test_id("stAlert").all_inner_texts()
    assert error.startswith("Not taken: 2.jpg. All your photos together may have 60 MB.")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.get_by_role("button", name="Remove all photos").click()
    tab.get_by_test_id("stAlert").wait_for(state="detached")
    upload(tab, ("2.jpg", padded))
    assert len(captions(tab, 1)) == 1


def test_a_photo_can_be_pasted(visit, samples) -> None:
    tab = visit()
    box = tab.get_by_placeholder("Or paste a photo here")
    box.click()
    box.evaluate(PASTE, [base64.b64encode(samples[2].read_bytes()).decode(), "image.jpg"])
    tab.get_by_text("image.jpg").wait_for()
    send = tab.get_by_role("button", name="Send message")
    tab.wait_for_function("b => !b.disabled", arg=send.element_handle())
    box.press("Enter")
    assert captions(tab, 1)[0]


def test_keyboard_alone_is_enough(visit) -> None:
    tab = visit()
    tab.get_by_role("button", name="dog", exact=True).wait_for()
    tab.get_by_placeholder("Or paste a photo here").focus()
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText.trim()") == "chickens":
            break
    else:
        pytest.fail("Tab does not lead to the samples")
    assert tab.evaluate(
        "getComputedStyle(document.activeElement).boxShadow + getComputedStyle(document.activeElement).outline"
    )
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
    assert tab.get_by_role("table", name="What else it might have said").count() == 1
    assert tab.get_by_role("button", name="Copy to clipboard").is_visible()
    assert tab.evaluate("document.documentElement.lang") == "en"


def test_where_it_looked(visit) -> None:
    if "cnn-lstm-attention" not in available():
        pytest.skip("no captioner with attention in data/checkpoints/")
    tab = visit()
    tab.get_by_role("combobox", name="Model").click()
    tab.get_by_role("option", name="cnn-lstm-attention", exact=True).click()
    tab.get_by_role("button", name="horses", exact=True).click()
    words = captions(tab, 1)[0].split()
    pictures = tab.locator("[class*=st-key-gaze] img")
    tab.wait_for_function(f"document.querySelectorAll('[class*=st-key-gaze] img').length == {len(words)}")
    said = [picture.get_attribute("alt") for picture in pictures.all()]
    assert [text.split()[3] for text in said] == words


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phones_width_light_and_dark(visit, theme) -> None:
    tab = visit(width=390, theme=theme)
    tab.get_by_role("button", name="kitten", exact=True).click()
    assert captions(tab, 1)[0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    code = tab.locator("[class*=st-key-caption] code")
    box = code.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    colours = [luminance(tab.evaluate(f"getComputedStyle(document.querySelector('{q}')).{p}")) for q, p in
               (("[class*=st-key-caption] code", "color"), (".stApp", "backgroundColor"))]  # fmt: skip
    assert (max(colours) + 0.05) / (min(colours) + 0.05) > 4.5  # WCAG 2.2, 1.4.3
    assert (colours[1] < 0.2) == (theme == "dark")


def luminance(colour: str) -> float:
    """Returns the relative luminance (WCAG 2.2) of a CSS colour such as rgb(1, 2, 3)."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
