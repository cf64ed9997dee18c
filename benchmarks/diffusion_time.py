"""Time of diffusion methods against bare, on random weights: measured ratio beside the ratio of FLOPs.

    python benchmarks/diffusion_time.py                                              # CPU: small models, ratios only
    PYTHONPATH=.:peers python benchmarks/diffusion_time.py --scale full --device cuda --dtype bfloat16 --pairs 10

`full` is a UNet of the size of Stable Diffusion 1.5 at 512 pixels, a transformer of the size of SD3 medium and one of
the size of Flux at 1024 (a GPU of 80 GB); speed does not depend on the values of weights. Thresholds of 10 skip
whatever changes, so that all first-block caches skip the same. Both arms of a pair are one pipeline in one process, in
random order.
On a GPU waits of the host are counted by torch (`synchronising_calls`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import typer
from diffusers.hooks import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusion import peers
from diffusion.arms import Arm, bare, plugin
from torch.utils.flop_counter import FlopCounterMode

from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device

RESULTS = Path(__file__).parent / "results"
STEPS = 20
WORDS = 77
# four resolutions, so that latents are an eighth of the picture; nothing is decoded
_VAE: dict[str, Any] = {
    "block_out_channels": (4,) * 4,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

UNET_ARMS = [
    plugin("forecast:interval=1"),
    plugin("forecast:interval=2"),
    plugin("deepcache:interval=2"),
    plugin("deepcache:interval=3"),
    plugin("cfg_cache:interval=2"),
    plugin("tome_sd:ratio=0.5"),
    Arm("DeepCache, interval 3", "peer", peers.deep_cache(3)),
    Arm("tomesd, ratio 0.5", "peer", peers.tome_sd(0.5)),
]
TRANSFORMER_ARMS = [
    plugin("forecast:interval=2"),
    plugin("fora:interval=3"),
    plugin("taylorseer:interval=3"),
    plugin("first_block:threshold=10"),
    plugin("cfg_cache:interval=2"),
    plugin("tome_sd:ratio=0.5"),
]


FLUX_ARMS = [
    plugin("forecast:interval=2"),
    plugin("fora:interval=3"),
    plugin("taylorseer:interval=3"),
    plugin("first_block:threshold=10"),
    plugin("tome_sd:ratio=0.5"),
    Arm("diffusers FirstBlockCache, 10", "diffusers", peers.enabled(FirstBlockCacheConfig(threshold=10.0))),
    Arm(
        "diffusers TaylorSeerCache, interval 3",
        "diffusers",
        peers.enabled(TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3, max_order=1)),
    ),
    Arm("cache-dit DBCache, threshold 10", "peer", peers.cache_dit(10.0)),
]


def unet(scale: str) -> tuple[Any, int]:
    """A UNet of Stable Diffusion 1.5's shape, and the width of its prompts."""
    widths = (320, 640, 1280, 1280) if scale == "full" else (32, 64, 128, 128)
    prompt = 768 if scale == "full" else 64
    made = diffusers.UNet2DConditionModel(
        sample_size=64 if scale == "full" else 16,
        block_out_channels=widths,
        cross_attention_dim=prompt,
        attention_head_dim=8,
        norm_num_groups=32,
    )
    return made, prompt


def unet_pipeline(scale: str) -> tuple[Any, dict[str, Any]]:
    """`StableDiffusionPipeline` with random weights, and its prompt."""
    model, width = unet(scale)
    vae = diffusers.AutoencoderKL(**_VAE)
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=model, scheduler=scheduler, requires_safety_checker=False, **none
    )
    prompt = {"prompt_embeds": torch.randn(1, WORDS, width), "negative_prompt_embeds": torch.randn(1, WORDS, width)}
    return pipe, prompt


def transformer_pipeline(scale: str) -> tuple[Any, dict[str, Any]]:
    """`StableDiffusion3Pipeline` with random weights, and its prompt."""
    heads, layers, size = (24, 24, 128) if scale == "full" else (4, 8, 16)
    width = 4096 if scale == "full" else 64
    model = diffusers.SD3Transformer2DModel(
        sample_size=size,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=width,
        caption_projection_dim=64 * heads,
        pooled_projection_dim=width,
        pos_embed_max_size=size // 2,
    )
    vae = diffusers.AutoencoderKL(latent_channels=16, **_VAE)
    none = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(transformer=model, scheduler=scheduler, vae=vae, **none)
    prompt = {
        "prompt_embeds": torch.randn(1, WORDS, width),
        "negative_prompt_embeds": torch.randn(1, WORDS, width),
        "pooled_prompt_embeds": torch.randn(1, width),
        "negative_pooled_prompt_embeds": torch.randn(1, width),
    }
    return pipe, prompt


def flux_pipeline(scale: str) -> tuple[Any, dict[str, Any]]:
    """`FluxPipeline` with random weights, its prompt, and no guidance of two calls."""
    full = scale == "full"
    width = 4096 if full else 64
    model = diffusers.FluxTransformer2DModel(
        num_layers=19 if full else 2,
        num_single_layers=38 if full else 6,
        attention_head_dim=128 if full else 64,
        num_attention_heads=24 if full else 4,
        joint_attention_dim=width,
        pooled_projection_dim=768,
        axes_dims_rope=(16, 56, 56) if full else (16, 24, 24),
        guidance_embeds=True,
    )
    vae = diffusers.AutoencoderKL(latent_channels=16, **_VAE)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.FluxPipeline(transformer=model, scheduler=scheduler, vae=vae, **none)
    side = 1024 if full else 256
    prompt = {"prompt_embeds": torch.randn(1, WORDS, width), "pooled_prompt_embeds": torch.randn(1, 768)}
    return pipe, {**prompt, "height": side, "width": side}


def runner(pipe: Any, prompt: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A run of all steps that returns when it is done."""
    given = {
        name: value.to(device, dtype) if isinstance(value, torch.Tensor) else value for name, value in prompt.items()
    }

    def run() -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        pipe(num_inference_steps=STEPS, guidance_scale=5.0, generator=generator, output_type="latent", **given)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def waits(run: Callable[[], None]) -> int:
    """How often the host waited for the GPU in a run."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
        return sum("synchroniz" in str(one.message) for one in seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def measure(arm: Arm, pipe: Any, run: Callable[[], None], pairs: int) -> dict[str, Any]:
    """One row. Our plugins stay attached and are paused for the other arm; others have no such switch, and are put on
    and taken off around every run."""
    flops = []
    for opened in (arm.opened, bare):
        with opened(pipe), FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())

    def with_it() -> None:
        with arm.opened(pipe):
            run()

    if arm.kind == "ours":
        with arm.opened(pipe) as handle:

            def paused() -> None:
                with handle.paused():
                    run()

            times = paired_times(run, paused, pairs=pairs, warmup=2)
    else:
        times = paired_times(with_it, run, pairs=pairs, warmup=1)
    ideal = flops[0] / flops[1]
    row = {"label": arm.label, "kind": arm.kind, "flop_ratio": ideal, "time_over_flops": times.ratio / ideal}
    if torch.cuda.is_available():
        row["synchronising_calls"] = {"with": waits(with_it), "bare": waits(run)}
    return row | {"time": times.to_dict()}


def main(
    scale: str = "small",
    device: str = "cpu",
    dtype: str = "float32",
    pairs: int = 7,
    output: Path | None = None,
) -> None:
    """Time every arm on both models and write the record."""
    torch.manual_seed(0)
    place, kind = torch.device(device), getattr(torch, dtype)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, make, arms in (
        ("unet", unet_pipeline, UNET_ARMS),
        ("transformer", transformer_pipeline, TRANSFORMER_ARMS),
        ("flux", flux_pipeline, FLUX_ARMS),
    ):
        pipe, prompt = make(scale)
        pipe.to(place, kind).set_progress_bar_config(disable=True)
        run = runner(pipe, prompt, place, kind)
        rows[name] = []
        for arm in arms:
            try:
                rows[name].append(measure(arm, pipe, run, pairs))
            except Exception as error:
                rows[name].append({"label": arm.label, "kind": arm.kind, "error": f"{type(error).__name__}: {error}"})
            typer.echo(rows[name][-1])
    config = {"scale": scale, "dtype": dtype, "steps": STEPS, "pairs": pairs}
    model = "random weights: UNet of SD1.5's shape, transformers of SD3's and of Flux's"
    record = Record("time of diffusion methods, with / bare", "1", model, config, describe_device(place), pairs, rows)
    typer.echo(record.write(output or RESULTS / f"diffusion_time_{place.type}.json"))


if __name__ == "__main__":
    typer.run(main)
