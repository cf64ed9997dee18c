"""The declaration of `vlm-eff tune`; what it does is in `tune.py`, which is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_eff.cli.options import Attention, Device, Dtype, Json, Model


def tune_command(
    task: Annotated[str, typer.Option(metavar="TASK", help="Such as scenes or textvqa:split=val.")] = "",
    budget: Annotated[
        str, typer.Option(metavar="NAME=SHARE,...", help="Of what the bare model uses: ttft, flops, n_eq, kv.")
    ] = "",
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="The preset; beside it the search.")] = None,
    max_drop: Annotated[str, typer.Option(help="Largest loss of accuracy on held-out items, points.")] = "1%",
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the official files of the task.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Candidates that are asked.")] = 40,
    calibration: Annotated[int, typer.Option(min=1, help="Items that are searched on.")] = 100,
    runoff: Annotated[int, typer.Option(min=0, help="Other items, to choose among the best; 0 for none.")] = 200,
    finalists: Annotated[int, typer.Option(min=1, help="Candidates in the run-off.")] = 8,
    validation: Annotated[int, typer.Option(min=1, help="Other items, that the result is judged by.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a batch.")] = 32,
    pairs: Annotated[int, typer.Option(min=0, help="Timed pairs of the first token; 0 times nothing.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the split and the search.")] = 0,
    model: Model = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
    json: Json = False,
) -> None:
    """Find token and cache settings that meet a budget and keep the answers; write them as a preset."""
    for name, given in (("--task", task), ("--budget", budget), ("--output", output)):
        if not given:
            raise typer.BadParameter(
                f"got no {name}; accepted is one. Such as --task scenes --budget ttft=0.5,kv=0.25."
            )
    if pairs in (1, 2):
        raise typer.BadParameter(f"got --pairs {pairs}; accepted is 0 or at least 3. Give more pairs.")
    from vlm_eff.cli.tune import TuneOptions, tune_model

    assert output is not None  # asked for above
    tune_model(
        TuneOptions(
            task, data, budget, max_drop, output, trials, calibration, runoff, finalists, validation, batch_size, pairs,
            seed, model, dtype, device, attn, json,
        )
    )  # fmt: skip
