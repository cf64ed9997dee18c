"""What is said of a UNet's skip connections is what is seen when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.tiny.pipelines import tiny_pipeline
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.models.denoise import unet as described
from vlm_eff.models.denoise.unet import Place, deep_modules, skip_connections

WIDTHS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
TEXT = {"cross_attention_dim": 8, "attention_head_dim": 4}


def _image(**more: Any) -> tuple[nn.Module, dict[str, Any]]:
    unet = diffusers.UNet2DConditionModel(
        **{
            **WIDTHS,
            **TEXT,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            **more,
        }
    )
    return unet, {"sample": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 3, 8)}


def _plain() -> tuple[nn.Module, dict[str, Any]]:
    unet = diffusers.UNet2DModel(
        **WIDTHS,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        downsample_type="resnet",
        upsample_type="resnet",
    )
    return unet, {"sample": torch.randn(1, 4, 8, 8)}


def _motion() -> tuple[nn.Module, dict[str, Any]]:
    unet = diffusers.UNetMotionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        cross_attention_dim=8,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=True,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )
    return unet, {"sample": torch.randn(1, 4, 3, 8, 8), "encoder_hidden_states": torch.randn(3, 3, 8)}


def _video() -> tuple[nn.Module, dict[str, Any]]:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=8,
        num_attention_heads=(2, 4),
        num_frames=3,
    )
    ids = torch.randn(1, 3)
    return unet, {
        "sample": torch.randn(1, 3, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 1, 8),
        "added_time_ids": ids,
    }


def _three() -> tuple[nn.Module, dict[str, Any]]:
    unet = diffusers.UNet3DConditionModel(
        **{**WIDTHS, **TEXT},
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    return unet, {"sample": torch.randn(1, 4, 3, 8, 8), "encoder_hidden_states": torch.randn(1, 3, 8)}


SIMPLE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (8, 16, 16),
}
UNETS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "one layer a block": lambda: _image(layers_per_block=1),
    "two": lambda: _image(),
    "three": lambda: _image(layers_per_block=3),
    "one, then two": lambda: _image(layers_per_block=(1, 2)),
    "simple attention": lambda: _image(**SIMPLE),
    "plain": _plain,
    "motion": _motion,
    "space and time": _video,
    "3d": _three,
}


def run(name: str) -> tuple[nn.Module, dict[nn.Module, Any], dict[nn.Module, Any], list[nn.Module]]:
    """A UNet, what its modules returned, what its up blocks were given, and in which order they ran."""
    torch.manual_seed(0)
    unet, call = UNETS[name]()
    outputs: dict[nn.Module, Any] = {}
    given: dict[nn.Module, Any] = {}
    order: list[nn.Module] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        order.append(module)
        tuples = [v for v in (*args, *kwargs.values()) if isinstance(v, tuple) and len(v) and isinstance(v[0], Tensor)]
        given[module] = tuples[0] if tuples else None

    def after(module: nn.Module, args: Any, output: Any) -> None:
        outputs[module] = output[0] if isinstance(output, tuple) else output

    for module in unet.modules():
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    with torch.no_grad():
        unet.eval()(timestep=torch.tensor(3), **call)
    return unet, outputs, given, order


def last_of(unet: Any, place: Place) -> nn.Module:
    """The module that made a skip connection, found from what the blocks list."""
    if place.block < 0:
        return unet.transformer_in if hasattr(unet, "transformer_in") else unet.conv_in
    block = unet.down_blocks[place.block]
    if place.layer == len(block.resnets):
        return block.downsamplers[-1]
    names = ("motion_modules", "temp_attentions", "attentions", "temp_convs", "resnets")
    return next(getattr(block, name)[place.layer] for name in names if hasattr(block, name))


def skips_are_as_seen(name: str) -> None:
    unet, outputs, given, _ = run(name)
    known = skip_connections(unet)
    assert len(known) == sum(len(block.resnets) for block in unet.up_blocks)
    for skip in known:
        made = outputs[last_of(unet, skip.made)]
        taken = given[unet.up_blocks[skip.taken.block]][-1 - skip.taken.layer]
        assert torch.equal(made.reshape(-1), taken.reshape(-1)), skip


@pytest.mark.parametrize("name", UNETS)
def test_skips_are_as_seen(name: str) -> None:
    skips_are_as_seen(name)


@pytest.mark.parametrize("name", UNETS)
def test_the_inside_runs_in_one_piece(name: str) -> None:
    unet, _, _, order = run(name)
    for branch in range(len(skip_connections(unet))):
        inside = deep_modules(unet, branch)
        within = {part for module in inside for part in module.modules()}
        places = [i for i, module in enumerate(order) if module in within]
        assert [module for module in order if module in inside] == inside
        # blocks that are computed in part lie around it
        between = [order[i] for i in range(places[0], places[-1]) if i not in places]
        assert all(module in (*unet.down_blocks, *unet.up_blocks) for module in between)
        taken = skip_connections(unet)[branch].taken
        after = order[places[-1] + 1 :]
        resnet = unet.up_blocks[taken.block].resnets[taken.layer]
        assert next(m for m in after if m in (*unet.up_blocks, resnet)) in (unet.up_blocks[taken.block], resnet)
        assert resnet in after


def test_a_place_that_is_one_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = described._samplers
    monkeypatch.setattr(described, "_samplers", lambda block, way: real(block, way)[1:])
    with pytest.raises((AssertionError, CapabilityError)):
        skips_are_as_seen("two")
    monkeypatch.setattr(described, "_samplers", real)
    monkeypatch.setattr(described, "reversed", lambda items: items, raising=False)
    with pytest.raises(AssertionError):
        skips_are_as_seen("two")


def test_what_cannot_be_described_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"fora\(\), first_block\(\) or forecast\(\)"):
        skip_connections(tiny_pipeline("dit").denoiser)
    k_blocks = {"down_block_types": ("KDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "KUpBlock2D")}
    with pytest.raises(CapabilityError, match="KDownBlock2D"):
        skip_connections(_image(**k_blocks)[0])
    unet = tiny_pipeline("sd").denoiser
    for branch in (-1, len(skip_connections(unet))):
        with pytest.raises(ConfigError, match="branch"):
            deep_modules(unet, branch)
    bare, _ = _image(mid_block_type=None)
    with pytest.raises(ConfigError, match="0 to"):
        deep_modules(bare, len(skip_connections(bare)) - 1)
