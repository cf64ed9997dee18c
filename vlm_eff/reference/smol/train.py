"""Train projector and low-rank changes: `python -m vlm_eff.reference.smol.train --output runs/smol --steps 1200`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..checkpoint import checkpoint_in
from ..loop import note, run_training
from .assemble import assemble
from .decoder import load_decoder, load_tokenizer
from .packing import RowMaker
from .processor import VISUAL_TOKENS, build_processor
from .record import CURVE, write_training_record
from .shipped import write_shipped
from .tower import load_tower
from .trainer import Trainer
from .warm_start import warm_start


def train(
    output: Annotated[Path, typer.Option(help="folder for checkpoint, curve and the trained weights")],
    steps: Annotated[int, typer.Option(help="length of the schedule in steps")],
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in the folder")] = False,
    seed: Annotated[int, typer.Option(help="seed of weights and data")] = 0,
    rows: Annotated[int, typer.Option(help="pictures a step")] = 3,
    rate: Annotated[
        float, typer.Option(help="peak learning rate of the low-rank changes; the projector has half")
    ] = 1e-3,
    rank: Annotated[int, typer.Option(help="rank of the changes")] = 8,
    easy_share: Annotated[float, typer.Option(help="share of easy-VQA pictures")] = 0.2,
    compile_layers: Annotated[bool, typer.Option("--compile/--no-compile", help="fuse layers by torch.compile")] = True,
    check_minutes: Annotated[float, typer.Option(help="minutes between checkpoints and checks")] = 4.0,
) -> None:
    """Train, and write what is shipped into OUTPUT."""
    checkpoint = checkpoint_in(output, resume=resume, minutes=None, steps=steps)
    settings = {
        "steps": steps,
        "seed": seed,
        "rows": rows,
        "rate": rate,
        "rank": rank,
        "easy_share": easy_share,
        "compiled": compile_layers,
    }
    tokenizer = load_tokenizer()
    processor = build_processor(tokenizer)
    model = assemble(load_tower(), load_decoder(), tokenizer, VISUAL_TOKENS)
    with (output / CURVE).open("a", encoding="utf-8") as curve:
        if not resume:
            explained = warm_start(model, processor, seed)
            note(curve, {"warm_start_explains": round(explained, 4)})
        maker = RowMaker(processor, rows, seed, easy_share)
        trainer = Trainer(model, maker, steps=steps, rate=rate, rank=rank, seed=seed)
        if resume:
            trainer.load(checkpoint)
        if compile_layers:
            trainer.compile()
        note(curve, {"started_at_step": trainer.step, "threads": torch.get_num_threads(), **settings})
        note(curve, trainer.check())
        run_training(trainer, checkpoint, curve, every=5, minutes=check_minutes)
    trainer.use(trainer.average)
    write_shipped(model, output)
    write_training_record(trainer, output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(train)
