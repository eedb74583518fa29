"""CLIPs: those that others trained, in the Hugging Face format, and our own small one, PocketCLIP.

Shapes: B images, S pixels a side, N captions, R regions, D width of the image tower, E width of the joint space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.files import CaptioningError, read_json, sha256_file
from helpers.text import UNKNOWN, Vocabulary, pad
from helpers.trunks import WIDTH, Encoder, LiteTrunk, weights_fingerprint

OPENAI = {  # the names that OpenAI gave them -> where they are on the hub
    "ViT-B/32": "openai/clip-vit-base-patch32", "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14", "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}  # fmt: skip


class ClipEncoder(Encoder):
    """A CLIP (Radford et al. 2021) or SigLIP (Zhai et al. 2023) in the Hugging Face format.

    `grid`: the last layer's tokens [B, R, D]; `pooled`: the image vector as the model gives it [B, E] (what ClipCap
    reads); `encode_image`: the same with length 1. Computes in fp32 on a CPU and in fp16 on a GPU; what comes out is
    float32. Notebook 05, section 1.
    """

    def __init__(self, name: str, device: str = "cpu"):
        """`name`: one of OPENAI, another on the hub, or a local folder. Raises CaptioningError when it is not there."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        number = torch.float32 if torch.device(device).type == "cpu" else torch.float16
        source = OPENAI.get(name, name)
        try:
            kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
            if kind not in ("clip", "siglip"):
                raise CaptioningError(f"{name} is a model of the kind {kind!r}. Expected a CLIP or a SigLIP.")
            model = AutoModel.from_pretrained(source, dtype=number, trust_remote_code=False)
            self.processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CaptioningError(
                f"The CLIP {source!r} could not be loaded: {str(error).strip()[:300]} Names: {', '.join(OPENAI)}, any "
                "CLIP or SigLIP of the Hugging Face hub, or the folder of one. Check the connection; pocket-clip needs "
                "none."
            ) from error
        self.name, self.kind, self.device = f"clip:{name}", kind, torch.device(device)
        self.module = model.to(self.device).eval().requires_grad_(False)
        vision = model.config.vision_config
        self.size, self.width = vision.image_size, vision.hidden_size
        self.regions = (vision.image_size // vision.patch_size) ** 2
        self.joint = model.config.projection_dim if kind == "clip" else vision.hidden_size
        self.mean = torch.tensor(self.processor.image_mean).view(3, 1, 1)
        self.deviation = torch.tensor(self.processor.image_std).view(3, 1, 1)
        self.fingerprint = weights_fingerprint(self.module, extra=f"clip {self.size}")

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities, the inverse of the temperature."""
        return self.module.logit_scale.detach().float().exp().item()

    def prepare(self, image: Image.Image) -> Tensor:
        """Returns uint8 pixels [3, S, S] by the model's own resizing and cropping."""
        # Its resizing would make 3 GB of a strip of 1 x 20,000 pixels, and keep the middle: the ends go first.
        w, h = image.size
        image = ImageOps.fit(image.convert("RGB"), (min(w, 16 * h), min(h, 16 * w)))
        out = self.processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")
        return out["pixel_values"][0].round().clamp(0, 255).to(torch.uint8)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Returns uint8 pixels as the model wants them: mean 0, deviation 1 a colour, in its number format."""
        x = pixels.to(self.device).float() / 255
        return ((x - self.mean.to(self.device)) / self.deviation.to(self.device)).to(self.module.dtype)

    def grid(self, pixels: Tensor) -> Tensor:
        tower = self.module.vision_model
        tokens = tower(pixel_values=self.normalised(pixels)).last_hidden_state
        tokens = tokens if self.kind == "siglip" else tower.post_layernorm(tokens)  # SigLIP's are normed already
        return tokens[:, -self.regions :].float()  # without CLIP's class token

    def pooled(self, pixels: Tensor) -> Tensor:
        out = self.module.get_image_features(pixel_values=self.normalised(pixels))
        return (out if isinstance(out, Tensor) else out.pooler_output).float()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Returns image vectors [B, E], of length 1, of uint8 pixels [B, 3, S, S]."""
        return F.normalize(self.pooled(pixels), dim=-1)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Returns caption vectors [N, E], of length 1. What exceeds the context is cut off."""
        captions = list(captions)
        with torch.inference_mode():
            pieces = [self._text_vectors(captions[i : i + 256]) for i in range(0, len(captions), 256)]
        vectors = torch.cat(pieces) if pieces else torch.zeros(0, self.joint, device=self.device)
        return F.normalize(vectors, dim=-1)

    def _text_vectors(self, captions: list[str]) -> Tensor:
        length = self.module.config.text_config.max_position_embeddings
        siglip = self.kind == "siglip"  # was trained on padded text without a mask
        options = {"truncation": True, "max_length": length, "padding": "max_length" if siglip else True}
        tokens = self.tokenizer(captions, return_tensors="pt", **options)
        names = ["input_ids"] if siglip else ["input_ids", "attention_mask"]
        out = self.module.get_text_features(**{n: tokens[n].to(self.device) for n in names})
        return (out if isinstance(out, Tensor) else out.pooler_output).float()


class Pooling(nn.Module):
    """A grid [B, R, D] to one vector [B, E]: the mean of all regions, plus what a few learned heads look at.

    Notebook 05, section 5.
    """

    def __init__(self, width: int, joint: int, heads: int, dropout: float):
        super().__init__()
        self.scores = nn.Linear(width, heads)
        self.values = nn.Linear(width, joint)
        self.mix = nn.Linear(joint, joint)
        self.mean = nn.Linear(width, joint)
        self.dropout = nn.Dropout(dropout)

    def forward(self, grid: Tensor) -> Tensor:
        weights = self.scores(grid).softmax(1)  # [B, R, heads], over the regions
        values = self.values(grid).unflatten(-1, (weights.shape[-1], -1))  # [B, R, heads, E / heads]
        looked = (weights[..., None] * values).sum(1).flatten(1)  # [B, E]
        return self.mean(self.dropout(grid.mean(1))) + self.mix(self.dropout(looked))


class TextTower(nn.Module):
    """Captions to vectors: word embeddings, a small transformer without a causal mask, the mean over the words.

    Notebook 05, section 5.
    """

    def __init__(self, vocabulary_size: int, width: int, layers: int, joint: int, dropout: float, max_words: int = 32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, width, padding_idx=0)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.place = nn.Parameter(torch.randn(max_words, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, joint)
        self.dropout = nn.Dropout(dropout)
        self.hide = 0.1  # share of words hidden in training, so that no caption hangs on one word

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, : len(self.place)]
        real = tokens != 0  # [N, T]
        if self.training:
            tokens = tokens.masked_fill((torch.rand(tokens.shape, device=tokens.device) < self.hide) & real, UNKNOWN)
        x = self.dropout(self.embed(tokens)) + self.place[: tokens.shape[1]]  # [N, T, W]
        x = self.layers(x, src_key_padding_mask=~real)
        mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)  # [N, W]
        return self.output(self.dropout(mean))


class PocketCLIP(nn.Module):
    """EfficientNet-Lite with a learned pooling on one side, a small transformer on the other.

    Notebook 05, section 5.
    """

    defaults = {"version": 2, "size": 224, "joint": 512, "heads": 8, "width": 256, "layers": 2, "dropout": 0.2}

    def __init__(self, vocabulary: Vocabulary, pretrained: bool = True, **options):
        super().__init__()
        self.config = c = {**self.defaults, **options}
        self.tokenizer = vocabulary
        self.trunk = LiteTrunk(c["version"], c["size"], pretrained)
        self.pool = Pooling(WIDTH, c["joint"], c["heads"], c["dropout"])
        self.text = TextTower(len(vocabulary), c["width"], c["layers"], c["joint"], c["dropout"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def image_side(self, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Returns vectors [B, E] and the grid [B, R, D] from the trunk's cached stem [B, H, W, C] or grid [B, R, D]."""
        grid = cached if cached.ndim == 3 else self.trunk.tail(cached)
        return self.pool(grid), grid

    def text_side(self, captions: Sequence[str]) -> Tensor:
        """Returns vectors [N, E], not normalised."""
        ids = [self.tokenizer.encode(caption) or [UNKNOWN] for caption in captions]
        return self.text(pad(ids, 0).to(self.logit_scale.device))


def load_pocket_clip(folder: Path) -> PocketCLIP:
    """Returns the model of a checkpoint, verified by hash, in evaluation mode and fp32. Notebook 05, section 1."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    try:
        if config["class"] != "PocketCLIP":
            raise ValueError(f"it holds {config['class']!r}, not a PocketCLIP")
        for name in ("model.safetensors", "vocabulary.json"):
            if sha256_file(folder / name) != config["sha256"][name]:
                raise ValueError(f"{name} is not the file that config.json was written with")
        model = PocketCLIP(Vocabulary.load(folder / "vocabulary.json"), pretrained=False, **config["options"])
        tensors = load_file(folder / "model.safetensors")
        model.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in tensors.items()})
    except (OSError, TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CaptioningError(f"{folder} cannot be used: {str(error)[:200]}. Train or fetch it again.") from error
    return model.eval().requires_grad_(False)
