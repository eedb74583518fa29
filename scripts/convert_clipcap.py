"""Weights that the authors' training script wrote, as a checkpoint: `python scripts/convert_clipcap.py FILE.pt FOLDER`.

Those that the authors published need no conversion: `python generate_caption.py --model clipcap-coco --image_path ...`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers.captioner import save_checkpoint  # noqa: E402
from helpers.files import command  # noqa: E402
from helpers.official import CLIP, DECODING, GPT2, read_weights  # noqa: E402


@command
def main(arguments: list[str] | None = None) -> None:
    """Reads the file, checks it, then writes the folder."""
    parser = argparse.ArgumentParser(description="Convert ClipCap weights of the authors' script into a checkpoint.")
    parser.add_argument("weights", help="a .pt file")
    parser.add_argument("folder", type=Path, help="the checkpoint to write")
    parser.add_argument("--encoder", default=CLIP, help=f"the CLIP it was trained with (default: {CLIP})")
    parser.add_argument("--language_model", default=GPT2, help=f"name or folder (default: {GPT2})")
    options = parser.parse_args(arguments)
    model = read_weights(options.weights, options.encoder, options.language_model)
    config = {"name": options.folder.name, "encoder": options.encoder, "features": "pooled", "decoding": DECODING}
    save_checkpoint(options.folder, model, config)
    print(f"{options.folder} is ready: python generate_caption.py --checkpoint {options.folder} --image_path PHOTO")


if __name__ == "__main__":
    raise SystemExit(main())
