"""Attention and MLPs are found on every tiny denoiser, in the order in which they run."""

from __future__ import annotations

from collections import Counter

import diffusers
import pytest
import torch
from torch import nn

from tests.tiny.pipelines import PIPELINES, WIDTH, tiny_pipeline
from vlm_eff.core.errors import CapabilityError
from vlm_eff.models.denoise.parts import find_parts, parts_of

COUNTS = {
    "sd": {"self": 11, "cross": 11, "mlp": 11},
    "sdxl": {"self": 12, "cross": 12, "mlp": 12},
    "dit": {"self": 3, "mlp": 3},
    "pixart": {"self": 3, "cross": 3, "mlp": 3},
    # the last block has no MLP of the text's
    "sd3": {"self": 3, "mlp": 5},
    "flux": {"self": 2, "mlp": 4, "fused": 2},
    "wan": {"self": 3, "cross": 3, "mlp": 3},
}


@pytest.mark.parametrize("family", PIPELINES)
def test_kinds_and_order(family: str) -> None:
    tiny = tiny_pipeline(family)
    parts = find_parts(tiny.denoiser)
    assert Counter(part.kind for part in parts) == COUNTS[family]
    ran: list[nn.Module] = []
    inside = [module for part in parts for module in (part.module, *part.before)]
    hooks = [module.register_forward_pre_hook(lambda m, args: ran.append(m)) for module in inside]
    tiny(2, guided=False)
    for hook in hooks:
        hook.remove()
    assert set(ran) == set(inside)
    first = [min(ran.index(part.module) for part in parts if part.index == i) for i in range(parts[0].blocks)]
    assert first == sorted(first)
    assert {part.name: part.module for part in parts} == {
        part.name: tiny.denoiser.get_submodule(part.name) for part in parts
    }


def test_a_fused_block_counts_as_what_is_asked_for() -> None:
    flux = tiny_pipeline("flux").denoiser
    name = "single_transformer_blocks.1"
    for kinds, want in ((("self",), "attn"), (("mlp",), "proj_mlp"), (("self", "mlp"), "proj_out")):
        assert [part.name for part in find_parts(flux, kinds) if part.name.startswith(name)] == [f"{name}.{want}"]


def test_attention_over_time() -> None:
    latte = diffusers.LatteTransformer3DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, caption_channels=WIDTH, cross_attention_dim=8, video_length=2,
    )  # fmt: skip
    parts = find_parts(latte)
    assert [part.kind for part in parts] == ["self", "cross", "mlp", "temporal", "mlp"] * 2
    assert [part.name.split(".")[0] for part in parts[:5]] == ["transformer_blocks"] * 3 + [
        "temporal_transformer_blocks"
    ] * 2


VIDEO = {
    "UNetMotionModel": ("Motion", {"num_attention_heads": 2, "norm_num_groups": 4}),
    "UNet3DConditionModel": ("3D", {"attention_head_dim": 4, "norm_num_groups": 4}),
    "UNetSpatioTemporalConditionModel": (
        "SpatioTemporal",
        {"num_attention_heads": (1, 1), "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12},
    ),
}


@pytest.mark.parametrize("kind", VIDEO)
def test_video_unets(kind: str) -> None:
    name, more = VIDEO[kind]
    unet = getattr(diffusers, kind)(
        down_block_types=(f"CrossAttnDownBlock{name}",) * 2,
        up_block_types=(f"CrossAttnUpBlock{name}",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        **more,
    )
    assert {part.kind for part in find_parts(unet)} == {"self", "cross", "temporal", "mlp"}


def test_attention_that_adds_its_input_is_left_out() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    assert find_parts(unet) == []
    with pytest.raises(CapabilityError, match="with attention in blocks"):
        parts_of(unet, ("self",), (), None)


def test_what_is_not_there_is_refused() -> None:
    dit = tiny_pipeline("dit").denoiser
    with pytest.raises(CapabilityError, match="self, mlp"):
        parts_of(dit, ("cross",), (), None)
    with pytest.raises(CapabilityError, match="cross"):
        parts_of(dit, ("self", "cross"), ("cross",), None)
    with pytest.raises(CapabilityError, match="0 to 2"):
        parts_of(dit, ("self",), (), (3,))
    assert [part.index for part in parts_of(dit, ("self", "cross"), (), (2, 0))] == [0, 2]
    with pytest.raises(CapabilityError):
        parts_of(torch.nn.Linear(1, 1), ("self",), (), None)
