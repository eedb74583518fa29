"""Draws Pocket Scenes: `python -m pocket_scenes FOLDER [--images 1500] [--size 128] [--seed 0]`."""

import argparse
import sys

from pocket_scenes.scenes import generate

parser = argparse.ArgumentParser(prog="python -m pocket_scenes", description="Draw small pictures with five captions.")
parser.add_argument("folder")
parser.add_argument("--images", type=int, default=1500)
parser.add_argument("--size", type=int, default=128)
parser.add_argument("--seed", type=int, default=0)
try:
    print(generate(**vars(parser.parse_args())))
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
