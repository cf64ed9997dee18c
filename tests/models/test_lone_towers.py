"""Towers without a language model: timm, open_clip and transformers, against ToMe written down once more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from tests import tower_reference
from tests.contracts.snapshot import assert_unchanged, snapshot
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConflictError, StateError, UnsupportedModelError
from vlm_eff.tokens import fastv, tome

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")

SIDE = 56
WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}


def sharp(model: Any) -> Any:
    """Weights that make attention peaked."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(1.3 * noise / weight[0].numel() ** 0.5)
    return model.eval()


def timm_tower(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    size = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}
    return sharp(timm.create_model(name, pretrained=False, **size | options))


def clip_tower() -> Any:
    vision = {"image_size": SIDE, "layers": 4, "width": 32, "patch_size": 8, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1}
    return sharp(open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text))


def pixels(images: int = 2) -> Tensor:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


TOWERS: dict[str, Any] = {
    "timm": timm_tower,
    "timm registers": lambda: timm_tower("vit_small_patch14_reg4_dinov2", init_values=0.5),
    "timm mean": lambda: timm_tower(global_pool="avg", class_token=False, fc_norm=False),
    "timm map": lambda: timm_tower("vit_base_patch16_siglip_224"),
    "timm qk norm": lambda: timm_tower(qk_norm=True),
    "open_clip": clip_tower,
    "open_clip visual": lambda: clip_tower().visual,
    "clip": lambda: sharp(CLIPVisionModel(CLIPVisionConfig(**WIDTH, intermediate_size=64))),
    "siglip": lambda: sharp(SiglipVisionModel(SiglipVisionConfig(**WIDTH, intermediate_size=64))),
    "dinov2": lambda: sharp(Dinov2ForImageClassification(Dinov2Config(**WIDTH, num_labels=5))),
    "dinov2 registers": lambda: sharp(Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**WIDTH))),
    "vit": lambda: sharp(ViTModel(ViTConfig(**WIDTH, intermediate_size=64))),
}


def output(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        made = model.encode_image(images) if hasattr(model, "encode_image") else model(images)
    for name in ("logits", "last_hidden_state"):
        made = getattr(made, name, made)
    return made


@pytest.mark.parametrize("options", [{}, {"init_values": 0.5}, {"qk_norm": True}])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_the_loop_over_single_images(options: dict[str, Any], proportional: bool, fused: bool) -> None:
    model = timm_tower(**options)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad(), attach(model, tome(r=5, proportional=proportional)) as handle:
        got = model.forward_features(pixels())
        # hooks of a copied model do nothing
        wanted = tower_reference.features(copy.deepcopy(model), pixels(), 5, proportional=proportional)
    for image, want in enumerate(wanted):
        slot, place = handle.tower_groups(3)[image]
        torch.testing.assert_close(got[image][place], want, atol=2e-5, rtol=1e-4)
        assert torch.equal(got[image], got[image][place][slot]), "members have the feature of their token"
    assert handle.stats().towers[-1].left == (30, 30)


def test_registers_and_class_token_are_protected() -> None:
    model = TOWERS["timm registers"]()
    with torch.no_grad(), attach(model, tome(r=40)) as handle:
        got = model.forward_features(pixels())
        want = tower_reference.features(copy.deepcopy(model), pixels(), 40)[0]
    slot, place = handle.tower_groups(3)[0]
    assert slot[:5].tolist() == place[:5].tolist() == [0, 1, 2, 3, 4]
    assert (torch.bincount(slot)[:5] == 1).all() and len(place) < 12
    torch.testing.assert_close(got[0][place], want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_every_library(name: str) -> None:
    model, images = TOWERS[name](), pixels(3)
    bare = output(model, images)
    with attach(model, tome(r=0)):
        assert torch.equal(output(model, images), bare)
    before = snapshot(model)
    with attach(model, tome(r=4)) as handle:
        merged = output(model, images)
        alone = torch.cat([output(model, image[None]) for image in images])
        with handle.paused():
            assert torch.equal(output(model, images), bare)
    assert merged.shape == bare.shape and (merged - bare).abs().max() > 1e-3
    torch.testing.assert_close(merged, alone, atol=1e-4, rtol=1e-4)
    assert_unchanged(before, model)
    assert torch.equal(output(model, images), bare)
    report = handle.stats().towers[0]
    assert report.attended[0] == report.tokens[0] and report.left[0] == report.tokens[0] - 16
    assert report.flops < report.flops_bare and "FLOPs" in str(handle.stats())


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2 registers", "vit"])
def test_captured_states_keep_every_place(name: str) -> None:
    model = TOWERS[name]()
    with torch.no_grad(), attach(model, tome(r=4)) as handle:
        states = model(pixels(), output_hidden_states=True).hidden_states
    for block, state in enumerate(states[1:]):
        slot, place = handle.tower_groups(block)[0]
        assert torch.equal(state[0], state[0][place][slot]) and len(place) == len(slot) - 4 * (block + 1)


def test_duplicates_lose_nothing() -> None:
    """Pairs of equal patches without position embeddings: merging them all is exact with proportional attention."""
    model = timm_tower(pos_embed="none")
    tile = pixels()[..., ::2]
    # 8 pixel patches: column by column twice
    images = tile.unflatten(-1, (-1, 4)).repeat_interleave(2, -1).flatten(-2)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)
    images = torch.cat([patches[:, :, :, :3].repeat_interleave(2, 3), patches[:, :, :, :1]], 3)
    images = images.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, SIDE, SIDE)
    bare = output(model, images)
    with attach(model, tome(r=[20, 0, 0])) as handle:
        merged = output(model, images)
    with attach(model, tome(r=[20, 0, 0], proportional=False)):
        off = output(model, images)
    assert handle.stats().towers[0].left == (30, 30)
    torch.testing.assert_close(merged, bare, atol=2e-5, rtol=1e-4)
    assert (off - bare).abs().max() > 1e-3


def test_schedules() -> None:
    model = timm_tower()
    # tokens at each block, and after the last, by the official rule int(first + step * block)
    for plugin, want in (
        (tome(r=(4, -1.0)), [50, 42, 37, 35, 35]),
        (tome(r=(4, 1.0)), [50, 50, 48, 43, 35]),
        (tome(r=4, inflect=1.0), [50, 50, 48, 43, 35]),
        (tome(r=[3, 0, 2]), [50, 47, 47, 45, 45]),
        (tome(r_ratio=0.1), [50, 46, 42, 38, 34]),
        (tome(r=99), [50, 26, 14, 8, 5]),
    ):
        with attach(model, plugin) as handle:
            output(model, pixels())
        report = handle.stats().towers[0]
        assert [*report.attended, report.left[0]] == want


def test_what_is_refused() -> None:
    model = timm_tower()
    with pytest.raises(CapabilityError, match="vision tower alone"):
        attach(model, fastv())
    with pytest.raises(ConflictError, match="both change the tokens inside the vision tower"):
        attach(model, tome(), tome(r=2))
    with attach(model, tome()) as handle:
        with pytest.raises(ConflictError, match="already carries"):
            attach(model, tome())
        output(model, pixels())
        with pytest.raises(StateError, match="decoder layer"):
            handle.survivors(0)
    with pytest.raises(CapabilityError, match="training mode"):
        attach(timm_tower().train(), tome())
    with pytest.raises(CapabilityError, match="block 4"):
        attach(model, tome(r=[1, 1, 1, 1, 1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("swin_tiny_patch4_window7_224", pretrained=False),
        lambda: timm.create_model("convnext_atto", pretrained=False),
        lambda: timm.create_model("eva02_tiny_patch14_224", pretrained=False),
        lambda: SwinModel(SwinConfig(depths=[1, 1], num_heads=[1, 2], embed_dim=8)),
        lambda: ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8])),
    ],
)
def test_other_towers_are_refused(make: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="Accepted"):
        attach(make().eval(), tome())
