"""How long the web page lets one wait: `python benchmarks/page.py`. Needs a Chromium, see scripts/get_chromium.sh.

Starts the page anew, gives it a photo in a headless Chromium as soon as it is there, and then a second one. Prints the
seconds from opening the page to the first caption, from the second photo to its caption, and their ratio.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from screenshot import BROWSERS, browser, page_server  # noqa: E402


def wait_for(tab, count: int) -> None:
    """Waits until `count` captions stand on the page."""
    tab.wait_for_function(f"document.querySelectorAll('[class*=st-key-caption] code').length == {count}")


def main() -> int:
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        print("No Chromium was found: sh scripts/get_chromium.sh", file=sys.stderr)
        return 1
    photos = sorted((ROOT / "sample_images").glob("*.jpg"))
    with browser(chromium) as chrome, page_server() as address:
        tab = chrome.new_page()
        tab.set_default_timeout(120_000)
        times = []
        began = time.perf_counter()
        tab.goto(address)
        for count in (1, 2):
            tab.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(photos[count])
            wait_for(tab, count)
            times.append(time.perf_counter() - began)
            time.sleep(1)
            began = time.perf_counter()
    print(f"first caption {times[0]:.1f} s after the page was opened, the second {times[1]:.2f} s after its photo, "
          f"{times[0] / times[1]:.0f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
