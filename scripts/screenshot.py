"""Makes docs/app.png, the picture of the web page that README.md shows: `python scripts/screenshot.py [FOLDER]`."""

from __future__ import annotations

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


@contextlib.contextmanager
def page_server(*arguments: str, seconds: float = 120) -> Iterator[str]:
    """Runs the page and yields its address. Raises RuntimeError when it does not start in time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"]
    server = subprocess.Popen([*command, "--", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=5).read()
                break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("The page did not start.")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:  # it waits for browsers that have the page open
            server.kill()
            server.wait()


@contextlib.contextmanager
def browser() -> Iterator:
    """Yields a Playwright browser: the Chromium of this machine, without a window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


def main(folder: str = str(ROOT / "docs")) -> None:
    target = Path(folder) / "app.png"
    with page_server() as address, browser() as chromium:
        tab = chromium.new_page(viewport={"width": 1180, "height": 940})
        tab.set_default_timeout(300_000)
        tab.goto(address)
        tab.get_by_role("button", name="dog", exact=True).click()
        tab.get_by_role("button", name="Download all as CSV").wait_for()
        tab.mouse.move(5, 5)
        tab.wait_for_timeout(1500)  # until pictures are drawn and the tooltip is gone
        tab.screenshot(path=target)
    Image.open(target).convert("RGB").quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
