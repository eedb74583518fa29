"""Do all captioners still say the same? Captions and log-probabilities of the sample photos, kept and compared.

    python benchmarks/same_captions.py --output before.json
    python benchmarks/same_captions.py --against before.json

Exit status 1 when a caption differs, or a log-probability by more than the tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TOLERANCE = 1e-3  # of a caption's log-probability: sums in another order differ in the sixth digit


def measure() -> dict[str, dict[str, list]]:
    """Returns for each captioner and photo the best caption and its alternatives, each with its log-probability."""
    from helpers.captioner import Captioner, available
    from helpers.images import list_images

    photos = list_images(ROOT / "sample_images")
    out = {}
    for name in available():
        captions = Captioner.load(name).caption(photos)
        out[name] = {Path(c.image).name: [[c.caption, c.log_prob], *map(list, c.alternatives)] for c in captions}
    return out


def differences(before: dict, after: dict) -> list[str]:  # one line for each candidate that is not as it was
    lines = []
    for model in sorted(before.keys() | after.keys()):
        old, new = before.get(model, {}), after.get(model, {})
        for photo in sorted(old.keys() | new.keys()):
            pairs = zip(old.get(photo, [["nothing", 0.0]]), new.get(photo, [["nothing", 0.0]]), strict=False)
            for place, ((old_text, old_value), (new_text, new_value)) in enumerate(pairs):
                if old_text != new_text or abs(old_value - new_value) > TOLERANCE:
                    change = f"{old_text!r} {old_value:.4f} -> {new_text!r} {new_value:.4f}"
                    lines.append(f"{model} {photo} candidate {place + 1}: {change}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="JSON file of an earlier run to compare with")
    options = parser.parse_args()
    found = measure()
    if options.output:
        options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    lines = differences(json.loads(options.against.read_text(encoding="utf-8")), found) if options.against else []
    print("\n".join(lines) or f"{len(found)} captioners, {sum(map(len, found.values()))} captions")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
