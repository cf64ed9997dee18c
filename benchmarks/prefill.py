"""Prefill of a 100 M-parameter random LLaVA, attached against bare: measured ratio beside the FLOP ratio.

    python benchmarks/prefill.py --pairs 20                       # CPU, float32
    python benchmarks/prefill.py --device cuda --dtype bfloat16   # the same on a GPU

Speed does not depend on the values of weights, so random ones do. Both arms are one model in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlm_eff
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device

IMAGE_ID = 7999
# tokens of an image: side of the input image, patches of 14 pixels
SIDES = {576: 336, 2916: 756}
TEXT = 64

PLUGINS = (
    "fastv:layer=2,keep_ratio=1.0",
    "fastv:layer=2,keep_ratio=0.5",
    "pyramiddrop:keep_ratio=0.5",
    "feather:keep_ratio=0.3",
    "uniform_grid:keep_ratio=0.25",
    "average_pool:keep_ratio=0.25",
)


def random_llava(visual_tokens: int) -> LlavaForConditionalGeneration:
    """LLaVA with 12 decoder layers of width 768 (12 heads, 4 key-value heads) and a small CLIP tower, seed 0."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDES[visual_tokens],
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=8000,
        max_position_embeddings=8192,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def random_prompt(model: LlavaForConditionalGeneration, batch: int, images: int = 1) -> dict[str, torch.Tensor]:
    """Eight text tokens, the images, and the rest of the text."""
    vision = model.config.vision_config
    side, visual = vision.image_size, images * (vision.image_size // vision.patch_size) ** 2
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, IMAGE_ID, (batch, visual + TEXT), generator=generator)
    ids[:, 8 : 8 + visual] = IMAGE_ID
    pixels = torch.randn(batch * images, 3, side, side, generator=generator).to(model.device, model.dtype)
    ids = ids.to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def measure(model: LlavaForConditionalGeneration, inputs: dict[str, Any], spec: str, pairs: int) -> dict[str, Any]:
    """One row: FLOPs of the whole forward (tower and head included) and paired prefill times, attached / bare."""

    @torch.no_grad()
    def run() -> None:
        model(**inputs, logits_to_keep=1)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    bare = flops()
    with vlm_eff.attach(model, vlm_eff.plugin(spec)) as handle:
        attached = flops()
        last = handle.stats().last
        assert last is not None

        def run_bare() -> None:
            with handle.paused():
                run()

        times = paired_times(run, run_bare, pairs=pairs, warmup=3)
    return {
        "plugin": spec,
        "n_eq": last.n_eq,
        "flop_ratio": attached / bare,
        "time_ratio": times.ratio,
        "time_ratio_interval": [times.low, times.high],
        "attached_ms": times.first_ms,
        "bare_ms": times.second_ms,
        "time_over_flops": times.ratio / (attached / bare),
    }


def main(
    pairs: int = typer.Option(20, help="Timed pairs of each plugin."),
    visual_tokens: int = typer.Option(576, help="576 or 2916 visual tokens."),
    batch: int = typer.Option(1, help="Rows of the prompt."),
    device: str = typer.Option("cpu"),
    dtype: str = typer.Option("float32"),
    output: Path = typer.Option(Path("benchmarks/results/prefill.json"), help="Where the record goes."),  # noqa: B008
) -> None:
    """Measure every plugin and write a record."""
    model = random_llava(visual_tokens).to(device, getattr(torch, dtype))
    inputs = random_prompt(model, batch)
    rows = []
    for spec in PLUGINS:
        rows.append(measure(model, inputs, spec, pairs))
        row = rows[-1]
        low, high = row["time_ratio_interval"]
        typer.echo(f"{spec:34} FLOPs {row['flop_ratio']:.3f}  time {row['time_ratio']:.3f} [{low:.3f}, {high:.3f}]")
    parameters = sum(p.numel() for p in model.parameters())
    settings = {"visual_tokens": visual_tokens, "batch": batch, "dtype": dtype, "text_tokens": TEXT, "pairs": pairs}
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="prefill, attached / bare, interleaved pairs",
        task_version="1",
        model=f"random LLaVA, {parameters / 1e6:.0f} M parameters, seed 0",
        config={**settings, "threads": torch.get_num_threads(), "attention": "sdpa"},
        device=describe_device(device),
        n=pairs,
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
