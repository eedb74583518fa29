"""Turn a finished run of PocketCLIP or PocketGPT2 into a shipped checkpoint with its card.

    python scripts/ship_pretrained.py pocket-clip
    python scripts/ship_pretrained.py pocket-gpt2
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXT = {
    "pocket-clip": (
        """A small dual encoder, class `PocketCLIP`: EfficientNet-Lite2 with its last stages fine-tuned and a learned
pooling on one side, a two-layer transformer over words on the other. Trained with the symmetric contrastive loss,
several captions an image, and with a captioner beside it whose word loss also shapes the grid (as in CoCa,
Yu et al. 2022); that captioner is thrown away.""",
        "python -m helpers.pocket_clip data/checkpoints/pocket-clip/training.json",
    ),
    "pocket-gpt2": (
        """A small `GPT2LMHeadModel` with a byte-level BPE tokenizer of its own, trained on caption text alone:
lower case, no punctuation, the five captions of a photo in one sequence, so that it learns to read what stands before.
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder without code of ours.""",
        "python -m helpers.language_models data/checkpoints/pocket-gpt2/training.json",
    ),
}


def main(name: str) -> int:
    from helpers.files import CHECKPOINTS, atomic_write, cache_dir

    run, folder = cache_dir() / "runs" / name, CHECKPOINTS / name
    made = run / "model" if name == "pocket-gpt2" else run
    names = ("model.safetensors", "config.json", "vocabulary.json", "tokenizer.json", "tokenizer_config.json")
    for file in (*names, "generation_config.json"):
        if (made / file).exists():
            shutil.copyfile(made / file, folder / file)
    shutil.copyfile(run / "history.csv", folder / "history.csv")
    with open(run / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [column for column in rows[0] if column not in ("seconds",)]
    table = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    shown = lambda value: value if value.isdigit() else f"{float(value):.3f}"  # noqa: E731
    table += ["| " + " | ".join(shown(row[column]) for column in columns) + " |" for row in rows]
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    about, command = TEXT[name]
    card = f"""# {name}

{about}
{(folder / "model.safetensors").stat().st_size / 1e6:.1f} MB in fp16.

- **Data**: the training split of Flickr8k (Hodosh et al. 2013; research and education only); measured on dev,
  1,000 photos with five captions each. The test split was not used.
- **Command**: `{command}`,
  {minutes:.0f} minutes on two CPU cores shared with other work, then
  `python scripts/ship_pretrained.py {name}`.

The run, epoch by epoch (also in `history.csv`):

{chr(10).join(table)}
"""
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
