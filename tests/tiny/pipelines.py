"""Tiny diffusers pipelines from config classes: random weights, real pipelines, a call that needs no text encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

WIDTH, WORDS = 16, 5


@dataclass
class TinyPipeline:
    """A pipeline and how it is called.

    call: what to pass besides steps and seed     guided: how to call it without guidance
    """

    family: str
    pipe: Any
    call: dict[str, Any]
    unguided: dict[str, Any]

    @property
    def denoiser(self) -> nn.Module:
        return self.pipe.unet if hasattr(self.pipe, "unet") else self.pipe.transformer

    def __call__(self, steps: int = 6, seed: int = 0, guided: bool = True, **more: Any) -> Tensor:
        """Latents of a run, or pixels of the pipeline that gives no latents."""
        call = {**self.call, **({} if guided else self.unguided)}
        if self.family != "dit":
            call["output_type"] = "latent"
        else:
            call["output_type"] = "np"
        generator = torch.Generator().manual_seed(seed)
        made = self.pipe(num_inference_steps=steps, generator=generator, **(call | more))[0]
        return made if isinstance(made, Tensor) else torch.as_tensor(made)


def _words(number: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, WORDS, WIDTH, generator=torch.Generator().manual_seed(100 + number))


def _pooled(number: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(200 + number))


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
    )


_PROMPT = {"prompt_embeds": _words(0), "negative_prompt_embeds": _words(1)}
_POOLED = {"pooled_prompt_embeds": _pooled(0), "negative_pooled_prompt_embeds": _pooled(1)}


def _sd() -> TinyPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))
    pipe = diffusers.StableDiffusionPipeline(
        vae=_vae(), unet=unet, scheduler=scheduler, requires_safety_checker=False, **none
    )
    return TinyPipeline("sd", pipe, {**_PROMPT, "guidance_scale": 5.0}, {"guidance_scale": 1.0})


def _sdxl() -> TinyPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + WIDTH,
    )
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False, **none
    )
    return TinyPipeline("sdxl", pipe, {**_PROMPT, **_POOLED, "guidance_scale": 5.0}, {"guidance_scale": 1.0})


def _dit() -> TinyPipeline:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    pipe = diffusers.DiTPipeline(transformer, _vae(), diffusers.DDIMScheduler(clip_sample=False))
    return TinyPipeline("dit", pipe, {"class_labels": [1, 2], "guidance_scale": 4.0}, {"guidance_scale": 1.0})


def _pixart() -> TinyPipeline:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=WIDTH,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipe = diffusers.PixArtAlphaPipeline(None, None, _vae(), transformer, scheduler)
    masks = {name: torch.ones(1, WORDS) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    call = {"prompt": None, "negative_prompt": None, **_PROMPT, **masks, "use_resolution_binning": False}
    return TinyPipeline("pixart", pipe, {**call, "guidance_scale": 4.0}, {"guidance_scale": 1.0})


def _sd3() -> TinyPipeline:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
    )
    none = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=_vae(), **none)
    call = {**_PROMPT, **_POOLED, "guidance_scale": 5.0, "height": 16, "width": 16}
    return TinyPipeline("sd3", pipe, call, {"guidance_scale": 1.0})


def _flux() -> TinyPipeline:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=_vae(), transformer=transformer, **none)
    # true guidance: two calls a step
    call = {**_PROMPT, **_POOLED, "true_cfg_scale": 4.0, "height": 16, "width": 16}
    return TinyPipeline("flux", pipe, call, {"true_cfg_scale": 1.0})


def _wan() -> TinyPipeline:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer
    )
    call = {**_PROMPT, "guidance_scale": 4.0, "height": 32, "width": 32, "num_frames": 5}
    return TinyPipeline("wan", pipe, call, {"guidance_scale": 1.0})


_MAKE: dict[str, Callable[[], TinyPipeline]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "dit": _dit,
    "pixart": _pixart,
    "sd3": _sd3,
    "flux": _flux,
    "wan": _wan,
}
PIPELINES = tuple(_MAKE)
UNETS = ("sd", "sdxl")
# two calls a step, one for each branch of the guidance
SEQUENTIAL = ("flux", "wan")

SCHEDULERS = ("DDIM", "PNDM", "DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete", "EulerAncestralDiscrete")


def make_pipeline(family: str) -> TinyPipeline:
    """A new pipeline with the weights that `tiny_pipeline` has."""
    return ready(_MAKE[family])


def ready(make: Callable[[], TinyPipeline]) -> TinyPipeline:
    """What `make` makes, from seed 0, with no weight at zero and no progress bar."""
    torch.manual_seed(0)
    made = make()
    for module in made.pipe.components.values():
        if isinstance(module, nn.Module):
            _liven(module.eval())
    made.pipe.set_progress_bar_config(disable=True)
    return made


@functools.cache
def tiny_pipeline(family: str) -> TinyPipeline:
    """The tests' shared pipeline of a family; whoever attaches detaches."""
    return make_pipeline(family)


def with_scheduler(tiny: TinyPipeline, name: str) -> TinyPipeline:
    """The shared pipeline of the same weights with another scheduler, by its class name without "Scheduler"."""
    return _with_scheduler(tiny.family, name)


@functools.cache
def _with_scheduler(family: str, name: str) -> TinyPipeline:
    made = make_pipeline(family)
    # as Stable Diffusion has it: without it the first steps are four evaluations each
    more = {"skip_prk_steps": True} if name == "PNDM" else {}
    made.pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(made.pipe.scheduler.config, **more)
    return made


def _liven(module: nn.Module) -> None:
    # what starts at zero (gates, last projections) would hide every difference
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.abs().max() == 0:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
