"""Turns a finished training run into a shipped checkpoint: scores every stage on dev, writes weights, curve and card.

python scripts/ship_checkpoint.py cnn-lstm [--run FOLDER] [--data_dir DIR]
"""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.captioner import Captioner, load_checkpoint, save_checkpoint  # noqa: E402
from helpers.datasets import load_dataset  # noqa: E402
from helpers.evaluate import diversity, objects, predict  # noqa: E402
from helpers.files import CHECKPOINTS, atomic_write, cache_dir, read_json  # noqa: E402
from helpers.loop import load_state  # noqa: E402
from helpers.metrics import evaluate  # noqa: E402

CARD = """# {name}

A captioner of class `{model[class]}` on features of `{encoder}` ({kind}), {size:.1f} MB in fp16.

- **Data**: the training split of Flickr8k (Hodosh et al. 2013; 6,000 photos, 30,000 captions; research and education
  only). The best epoch of each stage was chosen on dev. The test split was not used.
- **Command**: `python -m helpers.training data/checkpoints/{name}/training.json`, then
  `python scripts/ship_checkpoint.py {name} --ship "{shipped}"`.
- **Decoding**: {decoding}.

Scores on dev (1,000 photos, five references each), by the second command. Shipped: {shipped}.

{table}

{note}

![Loss a token on train and dev; CIDEr and BLEU-4 of free-running captions on dev](curve.png)

To score it again:

    python -m helpers.evaluate --dataset flickr8k --data_dir DIR --split dev --model {name} --json

**Limits**: photos like Flickr's of people, dogs and sports are what it has seen; numbers, left and right, and
rare things are often wrong. Photos are squeezed to a square before the encoder sees them.
"""


def score(captioner: Captioner, dataset, **options) -> dict:
    """Returns every metric of a loaded checkpoint on dev, by the same path as the evaluation command.

    Beside the usual ones "words" (different words used), "distinct-2", and of things that two people named "recall".
    """
    captions = predict(captioner, dataset, "dev", **options)
    told = dataset.references("dev")
    references = {image: told[image] for image in captions}
    varied, named = diversity(captions), objects(references, captions)
    scores = evaluate(references, captions) | {"words": varied["vocabulary"], "distinct-2": varied["distinct-2"]}
    return scores | {"recall": named["recall"], "CHAIR-i": named["CHAIR-i"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data_dir", help="where Flickr8k is (default: data/flickr8k)")
    parser.add_argument("--ship", metavar="ROW", help="the row of the table to ship (default: the best by CIDEr)")
    parser.add_argument("--note", default="", help="a paragraph for the card: what was tried, what it brought")
    options = parser.parse_args()
    run, folder = options.run or cache_dir() / "runs" / options.name, CHECKPOINTS / options.name
    trial = ROOT / "build" / "ship" / options.name
    config = read_json(run / "training.json")
    dataset = load_dataset("flickr8k", options.data_dir)
    model, _ = load_checkpoint(run)
    rows, weights = {}, {}
    for number, stage in enumerate(config["stages"], 1):
        load_state(run / f"stage{number}-best.safetensors", model)
        weights[f"{number}: {stage['objective'].replace('_', ' ')}"] = copy.deepcopy(model.state_dict())
    if len(weights) > 1:  # often better than either (Wortsman et al. 2022, "Model soups")
        *_, one, other = weights.values()
        weights["mean of the last two"] = {name: (value + other[name]) / 2 for name, value in one.items()}
    for name, values in weights.items():
        model.load_state_dict(values)
        captioner = Captioner.load(save_checkpoint(trial, model.eval(), config))  # as it will be read: in fp16
        rows[name] = score(captioner, dataset)
    scores = pd.DataFrame(rows).T
    print(scores)
    best = options.ship or scores["CIDEr"].astype(float).idxmax()
    model.load_state_dict(weights[best])
    save_checkpoint(folder, model, config, {"scores": {"flickr8k dev": rows[best]}})
    shutil.copyfile(run / "history.csv", folder / "history.csv")
    shutil.copyfile(run / "history.png", folder / "curve.png")
    lines = [["stage", *scores.columns], ["---"] * (1 + len(scores.columns))]
    for name, values in rows.items():
        cells = ["-" if value is None else f"{value:.3f}".removesuffix(".000") for value in values.values()]
        lines.append([name, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    size = (folder / "model.safetensors").stat().st_size / 1e6
    kind = config.get("inference_features") or config.get("features", "grid")
    decoding = ", ".join(f"{key} {value}" for key, value in config["decoding"].items())
    said = {"decoding": decoding, "kind": kind, "size": size, "table": table, "note": options.note, "shipped": best}
    text = CARD.format(**config | said)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
