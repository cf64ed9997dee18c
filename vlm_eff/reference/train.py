"""Train the reference model: `python -m vlm_eff.reference.train --output runs/small --minutes 80`.

First the vision tower alone learns what each patch shows (`dense.py`), then the whole model learns to answer, many
questions a picture at once (`batches.py`). The head of the first stage is thrown away at the end.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Annotated, TextIO

import torch
import typer

from .batches import BatchMaker
from .checkpoint import checkpoint_in
from .export import export_model
from .loop import note
from .model import build_model, preset
from .record import write_training_record
from .schedule import Schedule
from .trainer import Trainer
from .vocabulary import build_processor

log = logging.getLogger(__name__)


def train(
    output: Annotated[Path, typer.Option(help="folder for checkpoint, curve and the trained model")],
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in the folder")] = False,
    seed: Annotated[int, typer.Option(help="seed of weights and data")] = 0,
    minutes: Annotated[float | None, typer.Option(help="length of the schedule in minutes")] = None,
    steps: Annotated[int | None, typer.Option(help="length of the schedule in steps; exactly repeatable")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    size: Annotated[str, typer.Option("--preset", help="small or large")] = "small",
    batch_size: Annotated[int, typer.Option(help="pictures a step")] = 32,
    learning_rate: Annotated[float, typer.Option(help="peak learning rate")] = 3e-3,
    tower_share: Annotated[float, typer.Option(help="share of the schedule for the tower alone")] = 0.1,
    easy_share: Annotated[float, typer.Option(help="share of easy-VQA pictures")] = 0.3,
    compile_layers: Annotated[bool, typer.Option("--compile/--no-compile", help="fuse layers by torch.compile")] = True,
    optimiser: Annotated[str, typer.Option(help="muon or adamw")] = "muon",
    checkpoint_minutes: Annotated[float, typer.Option(help="minutes between checkpoints")] = 3.0,
) -> None:
    """Train, and export the result into OUTPUT/model."""
    settings = {
        "preset": size, "seed": seed, "minutes": minutes, "steps": steps, "batch_size": batch_size,
        "learning_rate": learning_rate, "tower_share": tower_share, "easy_share": easy_share,
        "optimiser": optimiser, "compiled": compile_layers,
    }  # fmt: skip
    checkpoint = checkpoint_in(output, resume=resume, minutes=minutes, steps=steps)
    place = _join_workers(device)
    processor = build_processor()
    model = build_model(preset(size), processor, seed)
    schedule = Schedule(minutes, steps, learning_rate, tower_share)
    maker = BatchMaker(processor, batch_size, seed, easy_share)
    trainer = Trainer(model, maker, schedule, place, optimiser)
    if resume:
        trainer.load(checkpoint)
    if compile_layers:
        trainer.compile()
    log.info("training %d parameters from step %d", sum(p.numel() for p in model.parameters()), trainer.step)
    with (output / "curve.jsonl").open("a", encoding="utf-8") as curve:
        if trainer.rank == 0:
            note(curve, {"started_at_step": trainer.step, "workers": trainer.workers, **settings})
        _run(trainer, checkpoint, curve, checkpoint_minutes)
    if trainer.rank > 0:
        return
    folder = export_model(trainer.averaged_model(), processor, output / "model")
    write_training_record(trainer, output / "curve.jsonl", folder)


def _run(trainer: Trainer, checkpoint: Path, curve: TextIO, checkpoint_minutes: float) -> None:
    """Train to the end of the schedule; the first worker writes the curve and the checkpoints."""
    last_save = last_check = time.monotonic()
    while not trainer.done:
        record = trainer.train_step()
        now = time.monotonic()
        if trainer.rank > 0:
            continue
        if trainer.step % 10 == 0:
            note(curve, record)
        if now - last_save > 60 * checkpoint_minutes:
            trainer.save(checkpoint)
            last_save = now
        if now - last_check > 120 * checkpoint_minutes:
            note(curve, trainer.check())
            last_check = time.monotonic()
    if trainer.rank == 0:
        trainer.save(checkpoint)
        note(curve, trainer.check())


def _join_workers(device: str) -> torch.device:
    """Return this worker's device; joins the others where `torchrun` started several."""
    if not torch.distributed.is_torchelastic_launched():
        return torch.device(device)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        return torch.device("cuda", torch.distributed.get_node_local_rank())
    return torch.device(device)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(train)
