"""Turn a finished training run into a shipped checkpoint: score every stage on dev, write weights, curve and card.

python scripts/ship_checkpoint.py cnn-lstm [--run FOLDER] [--data_dir DIR]
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


def score(captioner, dataset, split: str = "dev", **options) -> dict:
    """Returns every metric of a loaded checkpoint on one split, by the same path as the evaluation command."""
    from helpers.evaluate import predict
    from helpers.metrics import evaluate

    captions = predict(captioner, dataset, split, **options)
    scores = evaluate({image: dataset.references(split)[image] for image in captions}, captions)
    return scores | {"different captions": len(set(captions.values()))}


def curve(rows: list[dict], path: Path, title: str) -> None:
    """Draws the history: teacher-forced loss on train and dev, and CIDEr and BLEU-4 of free captions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = range(1, len(rows) + 1)
    number = lambda row, key: float(row[key]) if row.get(key) else float("nan")  # noqa: E731
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    first = [row["stage"] == "1" for row in rows]
    left.plot(
        steps, [number(r, "train_loss") if f else float("nan") for r, f in zip(rows, first, strict=True)], label="train"
    )
    left.plot(steps, [number(r, "dev_loss") for r in rows], label="dev")
    left.set(xlabel="epoch", ylabel="loss a token (teacher forcing)", title=title)
    right.plot(steps, [number(r, "CIDEr") for r in rows], label="CIDEr")
    right.plot(steps, [number(r, "BLEU-4") for r in rows], label="BLEU-4")
    right.set(xlabel="epoch", ylabel="score on dev (beam 3)", title="free-running captions")
    starts = [place + 0.5 for place in range(1, len(rows)) if rows[place]["stage"] != rows[place - 1]["stage"]]
    for axis in (left, right):
        for start in starts:
            axis.axvline(start, color="grey", linestyle=":", linewidth=1)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data_dir", help="where Flickr8k is (default: data/flickr8k)")
    parser.add_argument("--note", default="", help="a paragraph for the card: what was tried, what it brought")
    options = parser.parse_args()

    from helpers.captioner import Captioner, load_checkpoint, save_checkpoint
    from helpers.datasets import load_dataset
    from helpers.files import CHECKPOINTS, atomic_write, cache_dir, read_json
    from helpers.loop import load_mean
    from ranking.rerank import WEIGHTS

    run, folder = options.run or cache_dir() / "runs" / options.name, CHECKPOINTS / options.name
    config = read_json(run / "training.json")
    dataset = load_dataset("flickr8k", options.data_dir)
    with open(run / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    model, _ = load_checkpoint(run)
    stages, best, trial = [], None, ROOT / "build" / "ship" / options.name
    trial.mkdir(parents=True, exist_ok=True)
    tried = {f"{n}: {stage['objective'].replace('_', ' ')}": [n] for n, stage in enumerate(config["stages"], 1)}
    if mean := config.get("mean_of_stages"):
        tried[f"mean of {' and '.join(map(str, mean))}"] = mean
    for name, numbers in tried.items():
        load_mean([run / f"stage{number}-best.safetensors" for number in numbers], model)
        captioner = Captioner.load(save_checkpoint(trial, model.eval(), config))  # as it will be read: in fp16
        mine = [row for row in rows if int(row["stage"]) in numbers]
        cost = len(mine), sum(float(row["seconds"]) for row in mine) / 60
        stages.append((name, *cost, score(captioner, dataset, **dict.fromkeys(WEIGHTS, 0.0))))
        steps = {"clip": "PocketCLIP", "consensus": "consensus", "tag": "tags", "flaw": "flaws"}
        for place, step in enumerate(steps):  # each brings something to those before it
            if config["decoding"].get(f"{step}_weight"):
                later = {f"{other}_weight": 0.0 for other in list(steps)[place + 1 :]}
                ranked = ", ".join(list(steps.values())[: place + 1])
                stages.append((f"{name}, ranked by {ranked}", *cost, score(captioner, dataset, **later)))
        scores = stages[-1][-1]
        print(name, scores, sep="\n", flush=True)
        if best is None or scores["CIDEr"] > best[1]["CIDEr"]:
            best = name, scores
    number, scores = best
    load_mean([run / f"stage{n}-best.safetensors" for n in tried[number]], model)
    shown = [m for m in METRICS if m in scores]
    save_checkpoint(folder, model, config, {"scores": {"flickr8k dev": scores}})
    shutil.copyfile(run / "history.csv", folder / "history.csv")
    curve(rows, folder / "curve.png", options.name)
    size = (folder / "model.safetensors").stat().st_size / 1e6
    table = ["| stage | epochs | minutes | " + " | ".join(shown) + " |", "| --- " * (3 + len(shown)) + "|"]
    for name, epochs, minutes, values in stages:
        cells = [f"{values[m]:.3f}" if values[m] is not None else "-" for m in shown]
        table.append(f"| {name} | {epochs} | {minutes:.0f} | " + " | ".join(cells) + " |")
    decoding = ", ".join(f"{k} {v}" for k, v in config["decoding"].items())
    card = f"""# {options.name}

A captioner of class `{config["model"]["class"]}` on features of `{config["encoder"]}`
({config.get("inference_features") or config.get("features", "grid")}), {size:.1f} MB in fp16.

- **Data**: the training split of Flickr8k (Hodosh et al. 2013; 6,000 photos, 30,000 captions; research and education
  only).
  The best epoch of each stage was chosen on dev. The test split was not used.
- **Command**: `python -m helpers.training data/checkpoints/{options.name}/training.json` (two CPU
  cores shared with other work, no GPU; the minutes below are wall time),
  then `python scripts/ship_checkpoint.py {options.name}`.
- **Decoding**: {decoding}.

Scores on dev (1,000 photos, five references each), by the second command. Shipped: the
weights called {number!r}, the best by CIDEr.

{chr(10).join(table)}

{scores["different captions"]} different captions for the 1,000 photos. {options.note}

![Loss a token on train and dev; CIDEr and BLEU-4 of free-running captions on dev](curve.png)

To score it again:

    python -m helpers.evaluate --dataset flickr8k --data_dir DIR --split dev --model {options.name} --json

**Limits**: photos like Flickr's of people, dogs and sports are what it has seen; numbers, left and right, and
rare things are often wrong. Photos are squeezed to a square of
{read_json(folder / "config.json")["encoder"]["size"]} pixels before the encoder sees them.
"""
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
