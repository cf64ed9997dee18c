"""Tiny pipelines of transformers whose blocks are of other forms than those of `pipelines`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import diffusers
import torch

from tests.tiny.pipelines import _POOLED, _PROMPT, WIDTH, TinyPipeline, _flux, _vae, ready


def _flux2() -> TinyPipeline:
    """Two streams, then one of both; no cache context."""
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        mlp_ratio=2.0,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.Flux2Pipeline(scheduler, None, None, None, transformer)
    call = {"prompt_embeds": _PROMPT["prompt_embeds"], "height": 64, "width": 64}
    return TinyPipeline("flux2", pipe, call, {})


def _flux_image() -> TinyPipeline:
    """Starts from an image, and sets no cache context."""
    made = _flux().pipe
    made.vae.register_to_config(shift_factor=0.0)
    parts = {name: part for name, part in made.components.items() if name not in ("image_encoder", "feature_extractor")}
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    call = {"image": image, "strength": 0.75, "prompt_embeds": _PROMPT["prompt_embeds"], "height": 16, "width": 16}
    call["pooled_prompt_embeds"] = _POOLED["pooled_prompt_embeds"]
    return TinyPipeline("flux_image", diffusers.FluxImg2ImgPipeline(**parts), call, {})


def _aura() -> TinyPipeline:
    """Guidance in one batch; two streams, then one of both."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipe = diffusers.AuraFlowPipeline(None, None, _vae(), transformer, diffusers.FlowMatchEulerDiscreteScheduler())
    masks = {f"{name}prompt_attention_mask": torch.ones(1, 5) for name in ("", "negative_")}
    call = {**_PROMPT, **masks, "guidance_scale": 4.0, "height": 8, "width": 8}
    return TinyPipeline("aura", pipe, call, {"guidance_scale": 1.0})


def _ltx() -> TinyPipeline:
    """A video transformer of one stream that is called by name."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=3,
        caption_channels=WIDTH,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.LTXPipeline(scheduler, None, None, None, transformer)
    masks = {f"{name}prompt_attention_mask": torch.ones(1, 5) for name in ("", "negative_")}
    call = {**_PROMPT, **masks, "guidance_scale": 3.0, "height": 64, "width": 64, "num_frames": 9}
    return TinyPipeline("ltx", pipe, call, {"guidance_scale": 1.0})


def _cog() -> TinyPipeline:
    """A video transformer of two streams, image first."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=3,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=5,
    )
    pipe = diffusers.CogVideoXPipeline(None, None, None, transformer, diffusers.CogVideoXDDIMScheduler())
    call = {**_PROMPT, "guidance_scale": 3.0, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 5}
    return TinyPipeline("cog", pipe, call, {"guidance_scale": 1.0})


_MAKE: dict[str, Callable[[], TinyPipeline]] = {
    "flux2": _flux2,
    "flux_image": _flux_image,
    "aura": _aura,
    "ltx": _ltx,
    "cog": _cog,
}
OTHERS = tuple(_MAKE)


@functools.cache
def other_pipeline(family: str) -> TinyPipeline:
    """The tests' shared pipeline of a form; whoever attaches detaches."""
    return ready(_MAKE[family])
