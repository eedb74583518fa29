"""What a run measured, one JSON object a line, so that `make run` can end with one table."""

from __future__ import annotations

import json
import os
from pathlib import Path

from helpers.files import CaptioningError

FIELDS = ("model", "bleu4", "cider", "captions_per_second", "seconds")


def record(
    *,
    model: str,
    bleu4: float | None = None,
    cider: float | None = None,
    captions_per_second: float | None = None,
    seconds: float | None = None,
) -> None:
    """Appends one trained model's results to the file that `CAPTIONING_RESULTS` names; does nothing when it is unset.

    `bleu4` and `cider` are fractions (0.21) on the Pocket Scenes test split, `seconds` is the training time. A number
    that was not measured stays None.
    """
    path = os.environ.get("CAPTIONING_RESULTS")
    if not path:
        return
    numbers = {"bleu4": bleu4, "cider": cider, "captions_per_second": captions_per_second, "seconds": seconds}
    row = {"model": model} | {name: None if value is None else float(value) for name, value in numbers.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:  # one short line in one write: two notebooks cannot mix theirs
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: str | Path) -> list[dict]:
    """Returns the recorded rows in order, the last one of each model; an empty list when nothing was recorded.

    Raises CaptioningError naming the line that is not a record.
    """
    rows: dict[str, dict] = {}
    path = Path(path)
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row["model"]] = {name: row.get(name) for name in FIELDS}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CaptioningError(f"{path}, line {number} is not a result. Remove the file and run again.") from error
    return list(rows.values())
