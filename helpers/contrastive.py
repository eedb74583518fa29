"""The contrastive objective of CLIP (Radford et al. 2021), fine-tuning with it, and retrieval measured by recall.

Works on any dual encoder: an object with `image_side(inputs) -> vectors [B, E]` (or `(vectors, grid)`),
`text_side(captions) -> vectors [N, E]`, and a learned `logit_scale`.

Shapes: B images, N captions (several an image), E embedding width.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.training_state import Average, load_state, save_state


def contrastive_loss(images: Tensor, texts: Tensor, owner: Tensor, scale: Tensor | float) -> Tensor:
    """Returns the symmetric contrastive loss of image vectors [B, E] and captions [N, E]; `owner` [N] says whose.

    With one caption an image this is CLIP's loss. With several, each caption has to find its one image, and each image
    shares its probability among its own captions: never each other's wrong answers (Khosla et al. 2020, eq. 2).
    """
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # [B, N]
    text_to_image = F.cross_entropy(logits.T, owner)
    own = owner[None] == torch.arange(len(images), device=owner.device)[:, None]  # [B, N]
    log_shares = logits.log_softmax(1)
    image_to_text = -((log_shares * own).sum(1) / own.sum(1)).mean()
    return (text_to_image + image_to_text) / 2


def recall(images: Tensor, texts: Tensor, owner: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Returns recall@k both ways: how often the right image (or one of the right captions) is among the k nearest.

    images: [B, E], texts: [N, E], owner: [N]. What is exactly as near as the right one stands before it half of the
    time, so that a model which maps everything to one point scores nothing.
    """
    similarity = F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T  # [N, B]
    right = similarity.gather(1, owner[:, None])  # [N, 1]
    each = torch.arange(len(images), device=owner.device)
    text_rank = _rank(similarity, right, owner[:, None] == each)  # [N] images before the right one
    own = owner[None] == each[:, None]  # [B, N]
    best = similarity.T.masked_fill(~own, -torch.inf).amax(1, keepdim=True)  # [B, 1]
    image_rank = _rank(similarity.T, best, own)  # [B] captions before the best of its own
    scores = {f"text-to-image R@{k}": (text_rank < k).float().mean().item() for k in at}
    return scores | {f"image-to-text R@{k}": (image_rank < k).float().mean().item() for k in at}


def _rank(similarity: Tensor, right: Tensor, own: Tensor) -> Tensor:
    """Returns how many of a row come before `right`; those as near (or not a number) count half, its own never."""
    nearer, not_farther = similarity.gt(right), similarity.lt(right).logical_not()
    return ((nearer & ~own).sum(1) + (not_farther & ~own).sum(1)) / 2


def measure(dual: nn.Module, inputs: Callable, references: dict[str, list[str]]) -> dict[str, float]:
    """Returns the recalls of `dual` on images with their captions; `inputs(names)` gives what `image_side` takes."""
    dual.eval()
    names = list(references)
    captions = [caption for name in names for caption in references[name]]
    owner = torch.tensor([i for i, name in enumerate(names) for _ in references[name]])
    with torch.inference_mode():
        images = torch.cat(
            [_vectors(dual.image_side(inputs(names[i : i + 64]))).float() for i in range(0, len(names), 64)]
        )
        texts = torch.cat([dual.text_side(captions[i : i + 256]).float() for i in range(0, len(captions), 256)])
    return recall(images.cpu(), texts.cpu(), owner)


def _vectors(out: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def fine_tune(
    dual: nn.Module,
    inputs: Callable[[list[str], random.Random | None], Tensor],
    train: dict[str, list[str]],
    dev: dict[str, list[str]],
    *,
    epochs: int = 5,
    images_per_batch: int = 128,
    captions_per_image: int = 2,
    learning_rate: float = 1e-3,
    trunk_learning_rate: float = 2e-4,
    weight_decay: float = 0.05,
    warmup_steps: int = 100,
    average: float = 0.0,
    captioner: nn.Module | None = None,
    caption_weight: float = 0.5,
    seed: int = 0,
    folder: Path | None = None,
    callback: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Trains `dual` with the contrastive loss and returns the history, a row an epoch with the recalls on dev.

    `dual.trunk_parameters()` learn at `trunk_learning_rate`; frozen ones stay out. `inputs(names, chance)` gives what
    `image_side` takes, augmented when `chance` is given. A `captioner` reading the same grid may be trained beside
    it, its word loss added with `caption_weight` (Yu et al. 2022, "CoCa"): the grid then learns words, not only which
    picture is which. With a `folder` the run resumes after being killed. The last (averaged) weights are kept.
    """
    from helpers.batches import Batch
    from helpers.objectives import CrossEntropy
    from helpers.stability import Watch
    from helpers.stages import _schedule, make_accelerator, make_optimizer, seed_everything, write_history
    from helpers.text import teacher_forcing_batch

    accelerator = make_accelerator()
    both = nn.ModuleDict({"dual": dual} | ({"captioner": captioner} if captioner is not None else {}))
    trunk = [p for p in dual.trunk_parameters() if p.requires_grad]
    in_trunk = {id(p) for p in trunk}
    rest = [p for p in both.parameters() if p.requires_grad and id(p) not in in_trunk]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay, "base": learning_rate},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "base": learning_rate},
    ] + ([{"params": trunk, "weight_decay": weight_decay, "base": trunk_learning_rate}] if trunk else [])
    optimizer = make_optimizer(groups, learning_rate, accelerator.device, betas=(0.9, 0.98))
    mean = Average(both, average)
    last = folder / "last.safetensors" if folder else None
    state = (
        load_state(last, both, optimizer, mean) if last and last.exists() else {"epoch": 0, "step": 0, "history": []}
    )
    names = list(train)
    batches = max(1, len(names) // images_per_batch)
    settings = {"warmup_steps": warmup_steps, "schedule": "cosine"}
    words = len(captioner.tokenizer) if captioner is not None else 0
    watch = Watch("contrastive", max(words, images_per_batch * captions_per_image), False, last)
    for epoch in range(state["epoch"], epochs):
        began, losses, word_losses = time.perf_counter(), [], []
        seed_everything(seed * 1000 + epoch)
        chance = random.Random(f"{seed} {epoch}")
        order = chance.sample(names, len(names))
        both.train()
        for start in range(0, batches * images_per_batch, images_per_batch):
            chosen = order[start : start + images_per_batch]
            groups_of = [chance.sample(train[name], min(captions_per_image, len(train[name]))) for name in chosen]
            captions = [caption for group in groups_of for caption in group]
            owner = torch.tensor([i for i, group in enumerate(groups_of) for _ in group])
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * _schedule(settings, state["step"], epochs * batches)
            with accelerator.autocast():
                out = dual.image_side(inputs(chosen, chance))
                loss = contrastive_loss(
                    _vectors(out),
                    dual.text_side(captions),
                    owner.to(_vectors(out).device),
                    dual.logit_scale.exp().clamp(max=100),
                )
                total = loss
                if captioner is not None:
                    ids = [captioner.tokenizer.encode(caption) for caption in captions]
                    pair = teacher_forcing_batch(ids, captioner.start_id, captioner.end_id)
                    word_loss, tokens, _ = CrossEntropy()(captioner, Batch(chosen, out[1], owner, *pair))
                    total = loss + caption_weight * word_loss / tokens
                    word_losses.append(float(word_loss.detach() / tokens))
            watch.loss(total, state["step"], epoch, chosen)
            optimizer.zero_grad()
            total.backward()
            for part in filter(None, (rest, trunk)):
                watch.gradients(nn.utils.clip_grad_norm_(part, 1.0), state["step"], epoch, chosen)
            optimizer.step()
            state["step"] += 1
            mean.update(state["step"])
            losses.append(float(loss.detach()))
        row = {"epoch": epoch + 1, "loss": sum(losses) / len(losses)}
        if word_losses:
            row["word_loss"] = sum(word_losses) / len(word_losses)
        with mean.applied(), accelerator.autocast():
            row |= measure(dual, lambda names: inputs(names, None), dev)
        row["seconds"] = time.perf_counter() - began
        state["history"].append(row)
        state["epoch"] = epoch + 1
        if last:
            save_state(last, both, optimizer, mean, state)
            write_history(folder / "history.csv", state["history"])
        if callback:
            callback(row)
    if last:  # once more, for a run that was killed between its last state and its history
        write_history(folder / "history.csv", state["history"])
    with torch.no_grad():
        mean._swap()
    return state["history"]
