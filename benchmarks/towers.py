"""Vision towers with plugins inside, attached against bare: measured ratio beside the FLOP ratio.

    python benchmarks/towers.py                                   # CPU, float32, about four minutes on one core
    python benchmarks/towers.py --device cuda --dtype bfloat16 --batch 64 --pairs 30

Speed does not depend on the values of weights, so random ones do. Both arms are one model in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import typer

import vlm_eff
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device

MODELS = {"vit_small_patch16_224": 1.0, "vit_base_patch16_224": 0.6}  # share of the pairs: the larger one takes longer
PLUGINS = ("tome:r=0", "tome:r=13", "evit", "zero_tprune")


def measure(model: Any, pixels: torch.Tensor, spec: str, pairs: int) -> dict[str, Any]:
    """One row: FLOPs of the blocks and paired times of a forward, attached / bare."""

    @torch.no_grad()
    def run() -> None:
        model(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize()

    with vlm_eff.attach(model, vlm_eff.plugin(spec)) as handle:

        def run_bare() -> None:
            with handle.paused():
                run()

        times = paired_times(run, run_bare, pairs=pairs, warmup=1)
        report = handle.stats().towers[-1]
    flops = report.flops / report.flops_bare
    return {
        "plugin": spec,
        "tokens": report.tokens[0],
        "tokens_left": report.left[0],
        "flop_ratio": flops,
        "time_ratio": times.ratio,
        "time_ratio_interval": [times.low, times.high],
        "throughput_ratio": 1 / times.ratio,
        "attached_ms": times.first_ms,
        "bare_ms": times.second_ms,
        "pairs": pairs,
        "time_over_flops": times.ratio / flops,
    }


def main(
    pairs: int = typer.Option(10, help="Timed pairs of each plugin on the smallest model."),
    batch: int = typer.Option(8, help="Images of 224 x 224 pixels."),
    threads: int = typer.Option(1, help="CPU threads."),
    device: str = typer.Option("cpu"),
    dtype: str = typer.Option("float32"),
    output: Path = typer.Option(Path("benchmarks/results/towers.json"), help="Where the record goes."),  # noqa: B008
) -> None:
    """Measure every plugin on every tower and write a record."""
    torch.set_num_threads(threads)
    rows = []
    for name, share in MODELS.items():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval().to(device, getattr(torch, dtype))
        pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        pixels = pixels.to(device, getattr(torch, dtype))
        for spec in PLUGINS:
            row = {"model": name, **measure(model, pixels, spec, max(round(share * pairs), 3))}
            rows.append(row)
            low, high = row["time_ratio_interval"]
            typer.echo(
                f"{name:24} {spec:14} {row['tokens']} -> {row['tokens_left']:3} tokens  FLOPs {row['flop_ratio']:.3f}  "
                f"time {row['time_ratio']:.3f} [{low:.3f}, {high:.3f}]  throughput x {row['throughput_ratio']:.2f}"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="forward of a vision tower, attached / bare, interleaved pairs",
        task_version="1",
        model="timm ViT-S/16 and ViT-B/16, random weights, seed 0",
        config={"batch": batch, "dtype": dtype, "pairs": pairs, "threads": threads, "attention": "fused"},
        device=describe_device(device),
        n=pairs,
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
