"""An encoder that is fine-tuned with its captioner: the trunk's tail learns, what its stem gives is cached.

Vinyals et al. (2017, "Lessons learned from the 2015 MSCOCO image captioning challenge") tune the encoder only when the
captioner has learnt to speak: before, its random gradients spoil what the encoder knows. A stage whose `encoder_rate`
is 0 leaves the tail alone. A checkpoint keeps the tail's weights in `encoder.safetensors`; the stem and BatchNorm's
statistics never change, so they are those of the encoder that is named in its configuration.

Shapes: B images, S pixels a side, C stem channels, R regions, D feature width, N captions, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from helpers import encoders
from helpers.encoders import Encoder, TrunkEncoder, weights_fingerprint
from helpers.errors import CaptioningError, unknown_name
from helpers.files import save_tensors
from helpers.trunks import LiteTrunk

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
