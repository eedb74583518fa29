"""From a trained checkpoint to a captioner of one's own photos: the configuration, and the words that it lacks.

    python -m helpers.own_data FOLDER --start_from cnn-lstm --output data/runs/mine

reads a folder of photos with a CSV (image, caption), prints what is wrong in it, and writes the training configuration
`data/runs/mine.json` for `python -m helpers.training`. Notebook 08 goes through it step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers.errors import CaptioningError
from helpers.files import read_json, write_json
from helpers.text import SPECIALS, Vocabulary, normalise

# What a few hundred captions can bear: small steps, a short warm-up, and an end when dev stops improving.
STAGE: dict[str, Any] = {
    "epochs": 12, "images_per_batch": 16, "learning_rate": 3e-4, "warmup_steps": 10, "patience": 3,
    "decoding": {"method": "greedy", "max_length": 24},
}  # fmt: skip


def fine_tuning(
    checkpoint: str | Path, dataset: dict, output: str | Path, *, min_count: int = 2, **stage: Any
) -> dict[str, Any]:
    """Returns the configuration for `helpers.training.train` that goes on from `checkpoint` on another dataset.

    checkpoint: a shipped name or a folder; encoder, kind of features and decoding are taken from it. dataset: arguments
    of `load_dataset`, such as {"name": "folder", "data_dir": "my_photos"}. output: the folder of the new checkpoint,
    whose name it takes. min_count: how often a new word has to occur before a CNN-LSTM learns it. `stage` overrides
    STAGE. Raises CaptioningError when there is no such checkpoint.
    """
    from helpers import tuned_encoder
    from helpers.captioner import checkpoint_folder
    from helpers.encoders import MIRROR

    known = read_json(checkpoint_folder(checkpoint) / "config.json")
    kind = known["encoder"]["kind"]
    config = {
        "name": Path(output).name,
        "start_from": str(checkpoint),
        "dataset": dataset,
        "encoder": known["encoder"]["name"],
        "features": kind.removesuffix(MIRROR),
        "inference_features": kind,
        # what people say of the photos of the first training tells nothing of these
        "decoding": {name: value for name, value in known.get("decoding", {}).items() if name != "consensus_weight"},
        "stages": [{**STAGE, **stage}],
        "output": str(output),
    }
    if tuned_encoder.FILE in known["sha256"]:
        config["tune_encoder"] = True
    return config | ({"vocabulary": {"min_count": min_count}} if known["tokenizer"] == "vocabulary.json" else {})


def check_fit(config: dict, known: dict) -> None:
    """Raises CaptioningError when a training configuration would feed a checkpoint other features than it knows."""
    from helpers import tuned_encoder
    from helpers.encoders import MIRROR

    if tuned_encoder.FILE in known.get("sha256", {}) and not config.get("tune_encoder"):
        raise CaptioningError(
            f"{config['start_from']} was trained with an encoder of its own. Set tune_encoder to true; in a stage with "
            "an encoder_rate of 0 it stays as it is."
        )
    kind = known["encoder"]["kind"].removesuffix(MIRROR)
    for what, wanted, given in (
        ("the encoder", known["encoder"]["name"], config["encoder"]),
        ("features of kind", kind, config.get("features", "grid")),
    ):
        if wanted != given:
            raise CaptioningError(
                f"{config['start_from']} was trained with {what} {wanted!r}, and the configuration asks for {given!r}. "
                "Keep what the checkpoint knows; helpers.own_data.fine_tuning writes such a configuration."
            )


@torch.no_grad()
def grow_vocabulary(model: nn.Module, captions: Iterable[str], min_count: int = 2, seed: int = 0) -> list[str]:
    """Adds the words of `captions` that a CNN-LSTM lacks to its vocabulary and weights; returns them.

    Words seen at least `min_count` times, most frequent first. A new word begins as a vector like the others, drawn
    from their mean and deviation, and as likely as the average word. Known words keep their numbers, so everything that
    the model has learned stays. Give it training captions alone.
    """
    known: Vocabulary = model.tokenizer
    counts = Counter(word for caption in captions for word in normalise(caption) if word not in known)
    new = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not new:
        return []
    old_embed, old_output = model.embed, model.output
    words = len(known) + len(new)
    embed = nn.Embedding(words, old_embed.embedding_dim)
    output = nn.Linear(old_output.in_features, words)
    generator = torch.Generator().manual_seed(seed)
    for grown, old in ((embed.weight, old_embed.weight), (output.weight, old_output.weight)):
        old = old.cpu()
        drawn = torch.randn((len(new), old.shape[1]), generator=generator)
        grown.copy_(torch.cat([old, old[len(SPECIALS) :].mean(0) + drawn * old[len(SPECIALS) :].std(0)]))
    bias = old_output.bias.cpu()
    output.bias.copy_(torch.cat([bias, bias[len(SPECIALS) :].mean().expand(len(new))]))
    model.embed, model.output = embed.to(old_embed.weight.device), output.to(old_output.weight.device)
    model.config["vocabulary_size"] = words
    model.tokenizer = Vocabulary([*known.words[len(SPECIALS) :], *new])
    return new


def main(arguments: list[str] | None = None) -> int:
    """Prints the report of a folder and writes the configuration. Returns 1 when the folder cannot be used."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m helpers.own_data", description="Prepare fine-tuning on a folder.")
    parser.add_argument("folder", help="photos, and a CSV with the columns image, caption")
    parser.add_argument("--start_from", default="cnn-lstm", help="a captioner in data/checkpoints/, or its folder")
    parser.add_argument("--output", required=True, help="the folder of the new checkpoint")
    options = parser.parse_args(arguments)
    from helpers.datasets import load_dataset
    from helpers.report import dataset_report

    try:
        data = {"name": "folder", "data_dir": options.folder}
        print(dataset_report(load_dataset(**data)))
        config = fine_tuning(options.start_from, data, options.output)
    except CaptioningError as error:
        print(error, file=sys.stderr)
        return 1
    path = Path(options.output).with_suffix(".json")
    write_json(path, config)
    print(f"\nWritten: {path}. Train with: python -m helpers.training {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
