"""Makes the pictures of the web page that README.md shows: `python scripts/screenshot.py [--folder docs]`.

Starts the page, lets Chromium caption a sample photo in it, and saves docs/app.png; --all adds a phone's width, the
dark theme and a model that attends, to be looked at when the page was changed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWS = {  # name -> width, height, theme, model, sample
    "app": (1180, 940, "light", None, "dog"),
    "app_phone": (390, 844, "light", None, "dog"),
    "app_dark": (1180, 900, "dark", None, "kitten"),
    "app_attention": (1180, 1500, "light", "cnn-lstm-attention", "mariachi"),
    "app_phone_attention": (390, 1600, "dark", "cnn-lstm-attention", "mariachi"),
}


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def page_server(*arguments: str, seconds: float = 120) -> Iterator[str]:
    """Runs the page and yields its address, see `page_process`."""
    with page_process(*arguments, seconds=seconds) as (address, _):
        yield address


@contextlib.contextmanager
def page_process(
    *arguments: str, seconds: float = 120, script: str | Path = "app.py"
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs the page, or another `script` of Streamlit's, and yields its address and its process.

    Raises RuntimeError when it does not start in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", script, f"--server.port={port}", "--server.headless=true"]
    server = subprocess.Popen([*command, "--", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("The page did not start.") from None
                time.sleep(0.2)
        yield address, server
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:  # it waits for browsers that have the page open
            server.kill()
            server.wait()


@contextlib.contextmanager
def browser(path: str) -> Iterator:
    """Yields a Playwright browser: the Chromium at `path`, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield chromium
        finally:
            chromium.close()


def take(chromium, address: str, target: Path, view: tuple) -> None:
    """Saves a picture of the page after it has captioned a sample."""
    width, height, theme, model, sample = view
    tab = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    tab.set_default_timeout(300_000)
    tab.goto(address)
    tab.get_by_role("button", name=sample, exact=True).wait_for()
    if model:
        if width < 700:
            tab.get_by_test_id("stExpandSidebarButton").click()
        tab.get_by_role("combobox", name="Model").click()
        tab.get_by_role("option", name=model, exact=True).click()
        if width < 700:
            tab.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
    tab.get_by_role("button", name=sample, exact=True).click()
    tab.get_by_role("button", name="Download all as CSV").wait_for()
    tab.mouse.move(width - 5, 5)
    tab.wait_for_timeout(1500)  # until pictures are drawn and the tooltip is gone
    tab.screenshot(path=target)
    tab.close()
    Image.open(target).convert("RGB").quantize(256).save(target, optimize=True)


def main() -> int:
    """Reads the command line and makes the pictures. Returns the exit status."""
    p = argparse.ArgumentParser(description="Make the screenshot of the web page.")
    p.add_argument("--folder", type=Path, default=ROOT / "docs")
    p.add_argument("--all", action="store_true", help="other widths, themes and models as well")
    arguments = p.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        print("No Chromium found: sh scripts/get_chromium.sh installs it.", file=sys.stderr)
        return 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with page_server() as address, browser(path) as chromium:
        for name in VIEWS if arguments.all else ["app"]:
            target = arguments.folder / f"{name}.png"
            take(chromium, address, target, VIEWS[name])
            print(f"{target}  {target.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
