"""What every test shares. Notebook kernels inherit this environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars cannot be compared
os.environ.setdefault("CAPTIONING_PROGRESS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a test forks
os.environ.pop("CAPTIONING_RESULTS", None)  # tests are not a run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_style() -> Iterator[None]:
    """Gives each test matplotlib's own style again, whatever the one before it set."""
    yield
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcdefaults()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """The sample photos."""
    return sorted((ROOT / "sample_images").glob("*.jpg"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed Chromium; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine: `make test` installs it where it may (apt-get as root or by sudo)")


@pytest.fixture(scope="module")
def jobs() -> Iterator:
    """A `tests.job_server.Jobs`: processes that can be killed, limited or started together."""
    from tests.job_server import Jobs

    with Jobs() as jobs:
        yield jobs


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 64 small pictures of noise."""
    folder, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder
