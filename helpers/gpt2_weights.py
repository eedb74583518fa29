"""The weights of a GPT-2 without transformers around them: enough for captioning, and sooner at the first caption.

Importing transformers takes seconds, and `GPT2Reader` steps the weights itself. Whoever needs the whole model, to train
it or to read many words at once, gets it by `whole`.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import nn

USUAL = {
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
    "add_cross_attention": False, "tie_word_embeddings": True, "n_inner": None,
}  # fmt: skip


class Projection(nn.Module):
    """A linear layer whose weight is stored [in, out], as GPT-2's are."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class GPT2Weights(nn.Module):
    """Parameters under the names that `GPT2LMHeadModel` gives them. It is read, never called or trained."""

    def __init__(self, config: dict):
        super().__init__()
        self.options = dict(config)
        self.config = SimpleNamespace(**config)
        W, layers = config["n_embd"], config["n_layer"]
        norm = lambda: nn.LayerNorm(W, eps=config.get("layer_norm_epsilon", 1e-5))  # noqa: E731
        block = lambda: nn.ModuleDict(  # noqa: E731
            {
                "ln_1": norm(),
                "attn": nn.ModuleDict({"c_attn": Projection(W, 3 * W), "c_proj": Projection(W, W)}),
                "ln_2": norm(),
                "mlp": nn.ModuleDict({"c_fc": Projection(W, 4 * W), "c_proj": Projection(4 * W, W)}),
            }
        )
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config["vocab_size"], W),
                "wpe": nn.Embedding(config["n_positions"], W),
                "h": nn.ModuleList(block() for _ in range(layers)),
                "ln_f": norm(),
            }
        )
        self.lm_head = nn.Linear(W, config["vocab_size"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer["wte"]

    def whole(self) -> nn.Module:
        """Returns a `GPT2LMHeadModel` with these weights, on the same device and in the same mode."""
        from transformers import AutoConfig, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**copy.deepcopy(self.options)))
        model.load_state_dict(self.state_dict())
        weight = self.lm_head.weight
        return model.to(weight.device, weight.dtype).train(self.training).requires_grad_(weight.requires_grad)


def can_hold(config: dict) -> bool:
    """Returns whether a language model's configuration is that of a plain GPT-2, whose weights alone will do."""
    plain = config.get("model_type") == "gpt2" and all(config.get(k, v) == v for k, v in USUAL.items())
    usual = config.get("activation_function", "gelu_new") in ("gelu_new", "gelu_pytorch_tanh")
    sizes = ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions", "eos_token_id")
    return plain and all(isinstance(config.get(name), int) for name in sizes) and usual
