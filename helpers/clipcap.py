"""ClipCap (Mokady et al. 2021): image features become a prefix that a language model reads as if it were words.

Shapes: B images, N captions or beams, R image regions (1 for a single CLIP vector), D feature width, P prefix length,
T tokens, W width of the language model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.cnn_lstm import Standardise
from helpers.files import CaptioningError, unknown_name
from helpers.language_models import GPT2, CaptionTokenizer, load_language_model, read_on
from helpers.trunks import class_words


class MLPMapper(nn.Module):
    """The first mapper of the paper (section 3.2): one hidden layer with tanh. Notebook 06, section 3.

    A single vector [B, 1, D] becomes P prefix vectors, as in the paper. A grid [B, R, D] becomes one prefix vector a
    region, the same layer for each, so that the language model itself can look around: P = R.
    """

    def __init__(self, feature_width: int, width: int, prefix_length: int, regions: int, hidden: int = 0):
        super().__init__()
        per_region = prefix_length if regions == 1 else 1
        self.length = per_region * regions
        hidden = hidden or max(1, width * per_region // 2) if regions == 1 else hidden or 2 * width
        self.model = nn.Sequential(nn.Linear(feature_width, hidden), nn.Tanh(), nn.Linear(hidden, width * per_region))
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features).flatten(1).unflatten(1, (-1, self.width))  # [B, P, W]


class MapperLayer(nn.Module):
    """One layer of the mapper: attention without a causal mask, then two linear layers. Notebook 06, section 3."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, int(width * mlp_ratio)), nn.Linear(int(width * mlp_ratio), width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731  [B, L, W] -> [B, heads, L, W / heads]
        y = self.norm1(x)
        keys, values = self.to_keys_values(y).chunk(2, dim=-1)
        looked = F.scaled_dot_product_attention(split(self.to_queries(y)), split(keys), split(values))
        x = x + self.dropout(self.project(looked.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(self.norm2(x))))))


class TransformerMapper(nn.Module):
    """The second mapper of the paper: learned constants gather from the image's vectors. Notebook 06, section 3.

    A single vector is first spread over `clip_length` vectors, as in the paper; a grid gives one vector a region.
    """

    def __init__(
        self, feature_width: int, width: int, prefix_length: int, regions: int,
        layers: int = 8, heads: int = 8, mlp_ratio: float = 2.0, clip_length: int = 10, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.length, self.spread = prefix_length, clip_length if regions == 1 else 1
        self.linear = nn.Linear(feature_width, self.spread * width)
        self.constants = nn.Parameter(torch.randn(prefix_length, width))
        self.layers = nn.ModuleList(MapperLayer(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        x = self.linear(features).flatten(1).unflatten(1, (-1, self.width))  # [B, R or clip_length, W]
        x = torch.cat([x, self.constants.expand(len(x), -1, -1).to(x.dtype)], dim=1)  # [B, R + P, W]
        for layer in self.layers:
            x = layer(x)
        return x[:, -self.length :]  # [B, P, W]


MAPPERS = {"mlp": MLPMapper, "transformer": TransformerMapper}
SURE = 0.2  # a classifier's word is a tag from this probability on


@dataclass
class State:
    """What decoding remembers: the cache, and what the prefix predicted by itself. Notebook 06, section 6."""

    cache: Any  # N rows
    log_probs: Tensor | None  # [N, V] of the first token, until it was given out


class ClipCap(nn.Module):
    """A mapper and a causal language model, behind the captioner protocol. Notebook 06, section 6.

    There is no start token: the last output of the prefix predicts the first word. `tune` says what is trained beside
    the mapper: "full" tunes the language model with it (a GPT-2), "none" leaves every weight of it as it was. `end_id`
    is the token that ends a caption, the language model's own by default; weights from elsewhere may have been trained
    to end with another one, such as a full stop.

    With `tags` the features are of the kind "tagged": their last row says what a classifier is sure to see, and at most
    so many words for it stand between prefix and caption (Li et al. 2020, Oscar). Notebook 06, section 10.
    """

    start_id = None
    defaults = {
        "language_model": "pocket-gpt2", "tune": "full", "mapper": "mlp", "mapper_options": {}, "prefix_length": 10,
        "regions": 1, "standardise": True, "dropout": 0.0, "prompt": "", "end_id": None, "tags": 0,
    }  # fmt: skip

    def __init__(self, feature_width: int, language_model_config: dict | None = None, **options):
        """`language_model_config` rebuilds a tuned language model from a checkpoint, without its first weights."""
        super().__init__()
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            raise TypeError(f"ClipCap has no option {unknown}; it has {sorted(self.defaults)}.")
        c = {"feature_width": feature_width, **self.defaults, **options}
        if c["tune"] not in ("full", "none"):
            raise unknown_name("tuning", c["tune"], ["full", "none"])
        if c["mapper"] not in MAPPERS:
            raise unknown_name("mapper", c["mapper"], MAPPERS)
        self.config, self.tokenizer = c, None
        if c["tune"] == "full" and language_model_config:
            self.language_model = GPT2(language_model_config)
        else:
            self.language_model, self.tokenizer = load_language_model(c["language_model"])
        known = isinstance(self.language_model, GPT2)
        if c["tune"] == "full" and not known:
            raise CaptioningError(f"{c['language_model']!r} is no GPT-2; tune 'none' trains a mapper before it.")
        shape = self.language_model.config if known else {"plain_captions": self.tokenizer.plain}
        c["language_model_config"] = shape
        if self.tokenizer is not None:
            shape["eos_token_id"] = self.tokenizer.end_id  # some configurations name several
            self.tokenizer.end_id = self.tokenizer.end_id if c["end_id"] is None else c["end_id"]
        self.end_id = shape["eos_token_id"] if c["end_id"] is None else c["end_id"]
        self.width = self.language_model.get_input_embeddings().embedding_dim
        self.standardise = Standardise(feature_width) if c["standardise"] else nn.Identity()
        sizes = (feature_width, self.width, c["prefix_length"], c["regions"])
        self.mapper = MAPPERS[c["mapper"]](*sizes, **c["mapper_options"])
        self.dropout = nn.Dropout(c["dropout"])
        if c["tune"] != "full":
            self.language_model.requires_grad_(False)

    def train(self, mode: bool = True) -> ClipCap:
        """A language model that is not trained keeps its dropout off in training: it stays the reader that it was."""
        super().train(mode)
        if self.config["tune"] == "none":
            self.language_model.eval()
        return self

    def prefix(self, features: Tensor) -> Tensor:
        """Returns the prefix [B, P, W] of features [B, R, D]; tags and prompt, if any, stand behind it as words."""
        words = []
        if self.config["tags"]:
            words.append(self.tag_ids(features[:, -1]))  # [B, tags + 1]
            features = features[:, :-1]
        prefix = self.mapper(self.dropout(self.standardise(features)))
        if self.config["prompt"]:
            words.append(torch.tensor([self.tokenizer.encode(self.config["prompt"])]).expand(len(prefix), -1))
        for ids in words:
            read = self.language_model.get_input_embeddings()(ids.to(prefix.device))  # [B, L, W]
            prefix = torch.cat([prefix, read.to(prefix.dtype)], dim=1)
        return prefix

    def tags(self, scores: Tensor) -> list[list[str]]:
        """Returns for each image the words it is said to show, surest first. scores: the last row, [B, D], of features
        of the kind "tagged". Notebook 06, section 10."""
        words, names = class_words()
        best = (scores[:, : len(names)].softmax(-1) @ names.to(scores)).topk(self.config["tags"])  # of [B, words]
        return [
            [words[place] for p, place in zip(probabilities, places, strict=True) if p >= SURE]
            for probabilities, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def tag_ids(self, scores: Tensor) -> Tensor:
        """Returns tags as the language model reads them, [B, tags + 1]: a token each, end tokens where there are fewer,
        and one behind them. A tag that is no single token is left out."""
        ids = [[self.tokenizer.encode(tag) for tag in tags] for tags in self.tags(scores)]
        rows = [[pieces[0] for pieces in tags if len(pieces) == 1] for tags in ids]
        return torch.tensor([row + [self.end_id] * (self.config["tags"] + 1 - len(row)) for row in rows])

    def start(self, features: Tensor) -> State:
        """Returns the state after the prefix, one row an image. features: [B, R, D]. The prefix is read once."""
        prefix = self.prefix(features)  # [B, P, W]
        logits, cache = read_on(self.language_model, inputs_embeds=prefix, logits_to_keep=1)
        return State(cache, logits[:, -1].float().log_softmax(-1))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns log-probabilities [N, V] after `tokens` [N]. The first call after `start` reads none:
        what follows the prefix is known already."""
        if state.log_probs is not None:
            return state.log_probs, State(state.cache, None)
        logits, cache = read_on(self.language_model, state.cache, input_ids=tokens[:, None])
        return logits[:, -1].float().log_softmax(-1), State(cache, None)

    def reorder(self, state: State, index: Tensor) -> State:
        """Returns the state of the rows `index` [N']; the cache is changed in place."""
        state.cache.reorder_cache(index)
        return State(state.cache, None if state.log_probs is None else state.log_probs[index])

    def forward(self, features: Tensor, tokens: Tensor, row: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits [N, T + 1, V] for `tokens` [N, T]: the prefix predicts the first, each token the next.

        `row` [N] tells which image each caption describes. The mapper, and the language model over the prefix, run once
        an image; captions share what they left in the cache. Padding stands at the end, where a causal model never
        looks back from a real token, so it needs no mask; the labels leave it out. The second value is an empty map.
        """
        logits, cache = read_on(self.language_model, inputs_embeds=self.prefix(features), logits_to_keep=1)
        if row is not None:
            cache.reorder_cache(row)
            logits = logits[row]
        if tokens.shape[1]:
            rest, _ = read_on(self.language_model, cache, input_ids=tokens)  # [N, T, V]
            logits = torch.cat([logits, rest], dim=1)
        return logits, logits.new_zeros(*logits.shape[:2], 0)

    def extra_loss(self, attention: Tensor, labels_mask: Tensor) -> Tensor:
        return attention.new_zeros(())

    def left_out(self) -> list[str]:
        """Returns the names of weights that a checkpoint does not carry: an untuned language model's."""
        if self.config["tune"] == "full":
            return []
        return [f"language_model.{name}" for name in self.language_model.state_dict()]

    def load_tokenizer(self, path: Path) -> None:
        """Reads the checkpoint's own tokenizer file."""
        plain = bool(self.config["language_model_config"].get("plain_captions"))
        self.tokenizer = CaptionTokenizer.load(path, self.end_id, plain)
