"""More views of the training images: windows of the cached stem through a tail with blocks left out at random.

A trunk that was fine-tuned on these images gives them tidier features than it will give new photos. Views that are cut
and noisy bring training nearer to what the captioner will meet. They cost the tail alone, a fifth of the trunk.

Shapes: N images, B of them at a time, C stem channels, R regions, D feature width.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from helpers.errors import CaptioningError
from helpers.features import Features, cache_features, folder_name
from helpers.files import atomic_write, cache_dir, write_json
from helpers.locks import only_one

DROP_PATH = 0.1  # as in the fine-tuning of PocketCLIP
SMALLEST = 0.78  # share of the stem's height and width that a window keeps at least
BATCH = 8  # images that share a window


def crop_views(
    encoder, paths: dict[str, Path], names: list[str], kind: str, count: int, progress: bool = True
) -> list[Features]:
    """Returns `count` cached views [N, R, D] ("grid") or [N, D] ("pooled") of the images `names`.

    `paths` are all images whose stems are cached together, `names` those of the training split. View number i is the
    same on every call. Raises CaptioningError when the encoder is not cut into stem and tail, or for another kind.
    """
    from helpers.encoders import load_encoder

    trunk = getattr(encoder, "module", None)
    if not hasattr(trunk, "tail"):
        raise CaptioningError(f"{encoder.name} has no stem to cut windows from; set crops to 0.")
    if kind not in ("grid", "pooled"):
        raise CaptioningError(f"Views by crops are of kind 'grid' or 'pooled', not {kind!r}.")
    base = load_encoder(f"efficientnet-lite{trunk.version}", str(encoder.device), size=trunk.size)
    stems = [cache_features(base, paths, "stem", flip=mirror, progress=progress) for mirror in (False, True)]
    names = [name for name in names if all(name in stem for stem in stems)]
    return [_view(encoder, stems, names, kind, number, progress) for number in range(count)]


def _view(encoder, stems: list[Features], names: list[str], kind: str, number: int, progress: bool) -> Features:
    folder = _folder(encoder, stems[0], number)
    with only_one(folder):
        if not (folder / "done.json").exists():
            _fill(encoder, stems, names, folder / "features.npy", number, progress)
            write_json(folder / "done.json", {"encoder": encoder.name, "kind": "grid", "images": len(names)})
    grid = np.load(folder / "features.npy", mmap_mode="r")
    if kind == "grid":
        return Features(names, grid)
    blocks = (grid[start : start + 256].astype(np.float32) for start in range(0, len(grid), 256))
    return Features(names, np.concatenate([block.mean(1) for block in blocks]))


def _folder(encoder, stem: Features, number: int) -> Path:
    source = Path(getattr(stem.array, "filename", "memory")).parent.name.rsplit("-", 1)[-1]  # names the images
    return cache_dir() / "features" / folder_name(encoder, f"grid-crop{number}", False, source)


def _fill(encoder, stems: list[Features], names: list[str], file: Path, number: int, progress: bool) -> None:
    from tqdm import tqdm

    trunk, chance = encoder.module, random.Random(number)
    was_training, before = trunk.training, trunk.drop_path
    state = torch.random.get_rng_state()
    torch.manual_seed(number)
    trunk.train()
    trunk.drop_path = DROP_PATH
    try:
        with atomic_write(file) as temporary, torch.inference_mode(), encoder.autocast():
            shape = (len(names), encoder.regions, encoder.width)
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            starts = tqdm(range(0, len(names), BATCH), desc=f"crops {number}", disable=None if progress else True)
            for start in starts:
                chosen = names[start : start + BATCH]
                window = _window(stems[chance.randrange(2)][chosen], chance)  # [B, S/16, S/16, C]
                array[start : start + len(chosen)] = trunk.tail(window.to(encoder.device)).float().half().cpu().numpy()
            array.flush()
    finally:
        trunk.train(was_training)
        trunk.drop_path = before
        torch.random.set_rng_state(state)


def _window(stem: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Returns a random window of stem activations [B, H, W, C], stretched to their full size again."""
    H, W = stem.shape[1:3]
    h, w = (chance.randint(int(np.ceil(side * SMALLEST)), side) for side in (H, W))
    top, left = chance.randint(0, H - h), chance.randint(0, W - w)
    window = stem[:, top : top + h, left : left + w]
    if (h, w) != (H, W):
        window = F.interpolate(window.permute(0, 3, 1, 2), size=(H, W), mode="bilinear").permute(0, 2, 3, 1)
    return window.contiguous()
