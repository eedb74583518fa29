"""METEOR and SPICE: the two metrics that are Java programs, run so that neither can hang or take the scoring down."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from helpers.errors import CaptioningError

# METEOR 1.5's parameters for English (Denkowski and Lavie 2014, table 1): the weights of an exact, stem, synonym and
# paraphrase match; alpha weighs precision against recall, beta and gamma the word order, delta content words.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
GET_JAVA = (
    "install a Java runtime, 8 or later (Debian, Ubuntu, Colab: `apt-get install default-jre-headless`; conda: "
    "`conda install openjdk`; macOS: `brew install openjdk`), and `pip install pycocoevalcap`"
)


@functools.lru_cache(maxsize=1)
def no_java() -> str | None:
    """Returns why Java cannot be used here, or None when it runs. macOS has a `java` that only says there is none."""
    java = shutil.which("java")
    if not java:
        return f"there is no Java here; {GET_JAVA}"
    try:
        probe = subprocess.run([java, "-version"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not start ({error}); {GET_JAVA}"
    return None if probe.returncode == 0 else f"{java} does not run; {GET_JAVA}"


def meteor_counts(
    references: Mapping[str, list[str]], hypotheses: Mapping[str, str], timeout: float | None = None
) -> np.ndarray:
    """Returns METEOR's 23 counts an image, float64 [N, 23], from the program that pycocoevalcap carries.

    Captions are tokenised, words apart by a space. All lines go in at once and come back at once, so a program that
    dies or stands still (`timeout` in seconds) ends in a CaptioningError and never in a wait.
    """
    if reason := no_java():
        raise CaptioningError(f"METEOR skipped: {reason}.")
    jar = _package_folder() / "meteor" / "meteor-1.5.jar"
    lines = [
        " ||| ".join(("SCORE", *references[image], caption.replace("|||", "").replace("  ", " ")))
        for image, caption in hypotheses.items()
    ]
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        done = subprocess.run(
            command,
            input="\n".join(lines) + "\n",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            cwd=jar.parent,
            timeout=timeout or 300 + 0.5 * len(lines),
        )
    except subprocess.TimeoutExpired as error:
        raise CaptioningError(f"METEOR skipped: it gave no answer in {error.timeout:.0f} seconds.") from error
    except OSError as error:
        raise CaptioningError(f"METEOR skipped: Java did not start ({error}).") from error
    try:
        counts = np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()])
    except ValueError:
        counts = np.empty(0)
    if counts.shape != (len(lines), 23):
        said = next((line for line in done.stderr.splitlines() if line.strip()), "no reason given")
        raise CaptioningError(f"METEOR skipped: its program failed (exit status {done.returncode}: {said[:200]}).")
    whole = (counts[:, 20] == 1) & (counts[:, 21:23] == counts[:, 0:2]).all(axis=1)
    counts[whole, 20] = 0  # a caption matched in one piece is in no pieces: it pays no penalty, alone or in a sum
    return counts


def meteor_from_counts(counts: np.ndarray) -> np.ndarray:
    """Returns METEOR [...] from counts [..., 23], of one image or summed over images (Denkowski and Lavie 2014)."""
    lengths, functions = counts[..., 0:2], counts[..., 2:4]  # [..., 2]: of the caption, of the reference
    matches = counts[..., 4:20].reshape(
        *counts.shape[:-1], 4, 2, 2
    )  # [..., match, content or function, caption or ref.]
    chunks, matched = counts[..., 20], counts[..., 21:23]
    delta = np.array([DELTA, 1 - DELTA])
    weighted = np.einsum("...mfs,m,f->...s", matches, WEIGHTS, delta)
    words = DELTA * (lengths - functions) + (1 - DELTA) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(np.nan_to_num(weighted / words), -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        fragments = chunks / matched.mean(axis=-1)
        return np.nan_to_num(mean * (1 - GAMMA * fragments**BETA))


def spice(references: Mapping[str, list[str]], hypotheses: Mapping[str, str]) -> np.ndarray:
    """Returns SPICE an image, float64 [N] (Anderson et al. 2016); minutes of work and 8 GB of memory.

    Nothing is downloaded: raises CaptioningError, with the command, when Java or its language models are missing.
    """
    if reason := no_java():
        raise CaptioningError(f"SPICE skipped: {reason}.")
    if not (_package_folder() / "spice" / "lib" / "stanford-corenlp-3.6.0-models.jar").exists():
        raise CaptioningError(
            "SPICE skipped: its language models (400 MB) are not here. Fetch them once with `python -c 'from "
            "pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'`; it wants Java 8."
        )
    from pycocoevalcap.spice.spice import Spice

    numbered = dict(enumerate(hypotheses))  # its program needs names that sort
    try:
        _, scores = Spice().compute_score(
            {number: references[image] for number, image in numbered.items()},
            {number: [hypotheses[image]] for number, image in numbered.items()},
        )
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise CaptioningError(f"SPICE skipped: its program failed ({error}).") from error
    return np.nan_to_num(np.array([score["All"]["f"] for score in scores], dtype=np.float64))


def _package_folder() -> Path:
    try:
        import pycocoevalcap.meteor.meteor as meteor
    except ImportError as error:
        raise CaptioningError("METEOR skipped: `pip install pycocoevalcap` first.") from error
    return Path(meteor.__file__).parent.parent
