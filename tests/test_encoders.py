"""Image encoders: what each gives equals the library it comes from, and no file that it reads can run a program.

CLIPs of other people are stood in for by small models of the same classes, saved and loaded through the same calls.
"""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from helpers.encoders import load_encoder
from helpers.files import CaptioningError, load_weights
from helpers.trunks import Encoder, weights_fingerprint
from tests.tiny_clips import save_clip

CAPTIONS = ["a dog runs over the grass", "two children in a boat .", "x " * 300]


@pytest.fixture(scope="module")
def photos(samples) -> list[Image.Image]:
    return [Image.open(path).convert("RGB").resize((320, 240)) for path in samples[:4]]


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return load_encoder("efficientnet-lite0")


class Program:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# --- EfficientNet-Lite and torchvision


def test_the_trunk_gives_the_features_of_the_package() -> None:
    from helpers.trunks import LiteTrunk, pretrained_weights

    for version in (0, 2):
        trunk = LiteTrunk(version, 224).eval()
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name(f"efficientnet-lite{version}", image_size=224)
        net.load_state_dict(torch.load(pretrained_weights(version), map_location="cpu", weights_only=True))
        pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
        with torch.inference_mode():
            theirs = net.eval().extract_features((pixels.float() - 127) / 128).flatten(2).transpose(1, 2)
            ours = trunk(pixels)
        assert ours.shape == (2, 49, 1280)
        assert F.cosine_similarity(ours, theirs, dim=-1).min() > 0.9999


def test_prepare_keeps_colours_and_the_whole_picture(lite) -> None:
    halves = Image.new("RGB", (400, 200), (255, 0, 0))
    halves.paste((0, 0, 255), (200, 0, 400, 200))
    pixels = lite.prepare(halves)
    assert pixels.shape == (3, 224, 224) and pixels.dtype == torch.uint8
    assert pixels[:, 100, 5].tolist() == [255, 0, 0] and pixels[:, 100, -5].tolist() == [0, 0, 255]


def test_grid_and_pooled_agree_and_photos_differ(lite, photos) -> None:
    pixels = torch.stack([lite.prepare(photo) for photo in photos])
    grid, pooled = lite.features(pixels, "grid"), lite.features(pixels, "pooled")
    assert grid.shape == (4, lite.regions, lite.width) and grid.dtype == torch.float32
    assert torch.allclose(grid.mean(1), pooled, atol=0.02)
    between = F.cosine_similarity(pooled[:, None], pooled[None], dim=-1)
    assert between[~torch.eye(4, dtype=torch.bool)].max() < 0.95


def test_a_photo_has_the_same_features_alone_as_among_others(lite, photos) -> None:
    pixels = torch.stack([lite.prepare(photo) for photo in photos])
    together = lite.features(pixels, "grid")
    alone = torch.cat([lite.features(pixels[i : i + 1], "grid") for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_stem_and_the_tail_make_the_trunk(lite, photos) -> None:
    pixels = torch.stack([lite.prepare(photo) for photo in photos[:2]])
    with torch.inference_mode():
        assert torch.allclose(lite.module.tail(lite.module.stem(pixels)), lite.module(pixels))


def test_a_frozen_trunk_keeps_its_batch_statistics() -> None:
    from helpers.trunks import LiteTrunk

    trunk = LiteTrunk(0, 64, pretrained=False)
    before = {name: value.clone() for name, value in trunk.named_buffers()}
    trunk.train()
    trunk(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_buffers())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_without_a_connection_the_message_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CaptioningError, match="(?s)openai/clip-vit-base-patch32.*pocket-clip needs none"):
        load_encoder("clip:ViT-B/32")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("efficientnet-lite3", "efficientnet-lite2"),
        ("pocketclip", "pocket-clip"),
        ("clip:./nowhere", "ViT-B/32.*or the folder of one"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, hint) -> None:
    with pytest.raises(CaptioningError, match=hint):
        load_encoder(name)


def test_a_photo_is_squeezed_to_a_square(lite) -> None:
    wide = Image.effect_noise((90, 40), 80).convert("RGB")
    square = wide.resize((lite.size, lite.size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    assert torch.equal(lite.prepare(wide), lite.prepare(square))


def test_a_kind_that_an_encoder_lacks_is_refused(lite) -> None:
    pixels = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    for kind, reason in (("embedding", "efficientnet-lite0 'embedding'"), ("colour", "Known: grid, pooled, stem")):
        with pytest.raises(CaptioningError, match=reason):
            lite.features(pixels, kind)


def test_a_fingerprint_follows_the_weights_and_survives_saving_in_half() -> None:
    layer = torch.nn.Linear(4, 4)
    first = weights_fingerprint(layer)
    layer.load_state_dict({n: v.half().float() for n, v in layer.state_dict().items()})
    assert weights_fingerprint(layer) == first
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert weights_fingerprint(layer) != first != weights_fingerprint(layer, extra="224")


# --- Files of weights


def test_no_file_of_weights_can_run_a_program(tmp_path) -> None:
    mark = tmp_path / "ran"
    payload = pickle.dumps({"weight": Program(mark)}, protocol=2)
    (tmp_path / "old.pt").write_bytes(payload)
    torch.save({"weight": Program(mark)}, tmp_path / "new.pt")
    for name in ("old.pt", "new.pt"):
        with pytest.raises(CaptioningError, match="could run a program|Cannot read weights"):
            load_weights(tmp_path / name)
        assert not mark.exists()
    pickle.loads(payload)  # the trap itself works
    assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "Cannot read"), (b"not weights at all", "read"), (b"PK\x03\x04broken", "read")],
)
def test_a_damaged_file_is_named(tmp_path, content, message) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(CaptioningError, match=message):
        load_weights(tmp_path / "weights.pt")


def test_a_list_is_no_named_weights(tmp_path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CaptioningError, match="no named weights"):
        load_weights(tmp_path / "list.pt")


# --- CLIP


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, tmp_path_factory) -> Path:
    return save_clip(request.param, tmp_path_factory.mktemp(request.param))


def test_a_hugging_face_clip_equals_transformers(folder, photos) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    encoder = load_encoder(f"clip:{folder}")
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    pixels = torch.stack([encoder.prepare(photo) for photo in photos])
    theirs = processor(images=photos, return_tensors="pt")["pixel_values"]
    assert (encoder.normalised(pixels) - theirs).abs().max() < 0.02  # whole numbers of brightness
    options = {"padding": "max_length", "truncation": True, "max_length": 12}
    tokens = AutoTokenizer.from_pretrained(folder)(CAPTIONS, return_tensors="pt", **options)
    if "siglip" in model.config.model_type:
        tokens = {"input_ids": tokens["input_ids"]}
    else:
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        out = model(pixel_values=encoder.normalised(pixels), **tokens)
    assert torch.allclose(encoder.features(pixels, "embedding"), out.image_embeds, atol=1e-5)
    assert torch.allclose(encoder.encode_text(CAPTIONS), out.text_embeds, atol=1e-5)
    assert encoder.grid(pixels).shape == (4, 16, 32) == (4, encoder.regions, encoder.width)
    assert encoder.features(pixels, "pooled").shape[1] == encoder.joint == out.image_embeds.shape[1]
    scale = out.logits_per_text - (model.logit_bias if hasattr(model, "logit_bias") else 0)
    cosines = encoder.encode_text(CAPTIONS) @ encoder.features(pixels, "embedding").T
    assert torch.allclose(encoder.logit_scale * cosines, scale, atol=1e-4)


def test_the_grid_is_what_the_image_vector_is_made_of(tmp_path, photos) -> None:
    encoder = load_encoder(f"clip:{save_clip('clip', tmp_path)}")
    pixels = torch.stack([encoder.prepare(photo) for photo in photos])
    with torch.inference_mode():
        hidden = encoder.module.vision_model(pixel_values=encoder.normalised(pixels), output_hidden_states=True)
        tokens = encoder.module.vision_model.post_layernorm(hidden.hidden_states[-1])
        assert torch.allclose(encoder.grid(pixels), tokens[:, 1:], atol=1e-5)
        vectors = encoder.module.visual_projection(tokens[:, 0])  # of the class token, which is no region
    assert torch.allclose(encoder.pooled(pixels), vectors, atol=1e-5)


def test_a_strip_is_cut_before_it_is_scaled(tmp_path) -> None:
    encoder = load_encoder(f"clip:{save_clip('clip', tmp_path)}")
    strip = Image.new("RGB", (1, 200_000), (10, 20, 30))
    strip.paste((200, 100, 50), (0, 99_000, 1, 101_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = encoder.prepare(strip)
    assert pixels.shape == (3, encoder.size, encoder.size)
    assert pixels[:, encoder.size // 2, encoder.size // 2].tolist() == [200, 100, 50]  # the middle is what is kept
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_openais_names_lead_to_the_hub(monkeypatch) -> None:
    asked = []

    def refuse(source, **options):
        asked.append(source)
        raise OSError("not asked for")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    for name in ("ViT-B/32", "ViT-L/14", "google/siglip-base-patch16-224"):
        with pytest.raises(CaptioningError, match="not asked for"):
            load_encoder(f"clip:{name}")
    assert asked == ["openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14", "google/siglip-base-patch16-224"]


def test_a_model_of_another_kind_is_refused(tmp_path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(CaptioningError, match="'gpt2'. Expected a CLIP or a SigLIP"):
        load_encoder(f"clip:{tmp_path}")
