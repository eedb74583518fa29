"""What keeping freed memory brings: `python benchmarks/memory.py [--images 64]`.

Encodes the same pictures and trains a small CNN-LSTM for some steps, in two processes in turn: one that keeps what it
has freed (`helpers.memory`, as all of the course does) and one with the C library as it comes. Prints the ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = """
import sys, time
import torch
if sys.argv[1] == "as it comes":
    sys.platform, real = "other", sys.platform  # helpers.memory leaves other systems alone
    import helpers
    sys.platform = real
from helpers.cnn_lstm import ShowAttendTell
from helpers.trunks import lite_trunk
torch.manual_seed(0)
trunk, pixels = lite_trunk(2, 224), torch.randint(0, 256, (int(sys.argv[2]), 3, 224, 224), dtype=torch.uint8)
with torch.inference_mode():
    trunk(pixels[:8])
    began = time.perf_counter()
    grids = torch.cat([trunk(part) for part in pixels.split(8)])
    encoding = time.perf_counter() - began
model = ShowAttendTell(1000, grids.shape[-1])
optimizer, tokens = torch.optim.AdamW(model.parameters(), fused=True), torch.randint(0, 1000, (2 * len(grids), 15))
grids, row = grids.clone(), torch.arange(len(grids)).repeat_interleave(2)
for step in range(6):
    if step == 1:
        began = time.perf_counter()
    logits, _ = model(grids, tokens, row)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
print(encoding, time.perf_counter() - began)
"""


def seconds(mode: str, images: int) -> list[float]:
    """Returns the seconds that encoding and five training steps take in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", WORK, mode, str(images)], cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a second thread that waits for its core would blur it
    )  # fmt: skip
    return [float(value) for value in run.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    best = {}
    for _ in range(options.repeats):
        for mode in ("as it comes", "kept"):
            now = seconds(mode, options.images)
            best[mode] = [min(pair) for pair in zip(now, best.get(mode, now), strict=True)]
    for what, plain, kept in zip(("encoding", "training"), best["as it comes"], best["kept"], strict=True):
        print(f"{what}: {plain / kept:.2f} times as fast with freed memory kept ({plain:.2f} s, {kept:.2f} s)")


if __name__ == "__main__":
    main()
