"""Train a small diffusion model: `python -m vlm_eff.reference.diffusion.train --model unet --output runs/unet`.

One thread is best for models this small (`OMP_NUM_THREADS=1`), in float32: on a CPU with bfloat16 instructions
bfloat16 took 1.6 times as long. The result is exactly repeatable on the same machine, also through `--resume`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from ..checkpoint import checkpoint_in
from ..loop import note, run_training
from ..schedule import Schedule
from .trainer import DiffusionTrainer


def build_denoiser(name: str, seed: int = 0) -> nn.Module:
    """Return the untrained denoiser, "unet" or "dit"."""
    from .dit import DiTDenoiser
    from .unet import UNetDenoiser

    kinds = {"unet": UNetDenoiser, "dit": DiTDenoiser}
    if name not in kinds:
        raise ValueError(f"got model {name!r}; accepted are {', '.join(kinds)}; use one of them")
    torch.manual_seed(seed)
    return kinds[name]()


def train(
    model: Annotated[str, typer.Option(help="unet or dit")],
    output: Annotated[Path, typer.Option(help="folder for checkpoint and curve")],
    steps: Annotated[int, typer.Option(help="length of the schedule in steps")],
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in the folder")] = False,
    seed: Annotated[int, typer.Option(help="seed of weights and data")] = 0,
    batch_size: Annotated[int, typer.Option(help="pictures a step")] = 32,
    learning_rate: Annotated[float, typer.Option(help="peak learning rate")] = 3e-3,
    optimiser: Annotated[str, typer.Option(help="adamw or muon")] = "adamw",
    checkpoint_minutes: Annotated[float, typer.Option(help="minutes between checkpoints")] = 2.0,
) -> None:
    """Train to the end of the schedule."""
    settings = {
        "model": model, "seed": seed, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
        "optimiser": optimiser,
    }  # fmt: skip
    checkpoint = checkpoint_in(output, resume=resume, minutes=None, steps=steps)
    schedule = Schedule(None, steps, learning_rate, tower_share=0.0)
    trainer = DiffusionTrainer(build_denoiser(model, seed), schedule, batch_size, seed, optimiser)
    if resume:
        trainer.load(checkpoint)
    with (output / "curve.jsonl").open("a", encoding="utf-8") as curve:
        note(curve, {"started_at_step": trainer.step, **settings})
        run_training(trainer, checkpoint, curve, every=20, minutes=checkpoint_minutes)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(train)
