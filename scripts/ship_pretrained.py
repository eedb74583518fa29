"""Turns a finished run of PocketCLIP or PocketGPT2 into a shipped checkpoint with its card.

python scripts/ship_pretrained.py pocket-clip
python scripts/ship_pretrained.py pocket-gpt2
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.files import CHECKPOINTS, atomic_write, cache_dir  # noqa: E402

TEXT = {
    "pocket-clip": """A small dual encoder, class `PocketCLIP`: EfficientNet-Lite2 with its last stages fine-tuned and a
learned pooling on one side, a two-layer transformer over words on the other. Trained with the symmetric contrastive
loss, several captions an image, and with a captioner beside it whose word loss also shapes the grid (as in CoCa,
Yu et al. 2022); that captioner is thrown away.""",
    "pocket-gpt2": """A small GPT-2 with a byte-level BPE tokenizer of its own, trained on caption text alone:
lower case, no punctuation, the five captions of a photo in one sequence, so that it learns to read what stands before.
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load the folder without code of ours.""",
}


def main(name: str) -> None:
    run, folder = cache_dir() / "runs" / name, CHECKPOINTS / name
    made = run / "model" if name == "pocket-gpt2" else run
    for file in (*made.glob("*.json"), made / "model.safetensors", run / "history.csv"):
        shutil.copyfile(file, folder / file.name)
    rows = pd.read_csv(run / "history.csv")
    minutes = rows.pop("seconds").sum() / 60
    card = f"""# {name}

{TEXT[name]}

- **Data**: the training split of Flickr8k (Hodosh et al. 2013; research and education only); measured on dev,
  1,000 photos with five captions each. The test split was not used.
- **Command**: `python -m helpers.pretraining data/checkpoints/{name}/training.json`, {minutes:.0f} minutes,
  then `python scripts/ship_pretrained.py {name}`.

The run, epoch by epoch (also in `history.csv`):

{rows.round(3).to_string(index=False)}
"""
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
