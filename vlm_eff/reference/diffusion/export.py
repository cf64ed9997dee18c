"""Ship a trained model: `python -m vlm_eff.reference.diffusion.export --run runs/unet` writes weights and card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint import read_checkpoint
from ..machine import describe_device, package_versions
from .pipelines import shipped_state
from .train import build_denoiser
from .weights import card_of, save_half, weights_of

_CURVE_POINTS = 24


def export(
    run: Annotated[Path, typer.Option(help="folder with checkpoint.pt and curve.jsonl")],
    output: Annotated[Path | None, typer.Option(help="weights file; default: the bundled one")] = None,
) -> None:
    """Write the averaged weights of a run in half precision, and the card that says how they were trained."""
    rows = [json.loads(line) for line in (run / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    starts = [row for row in rows if "started_at_step" in row]
    state = read_checkpoint(run / "checkpoint.pt")
    name = starts[0]["model"]
    denoiser = build_denoiser(name)
    for parameter, value in zip(denoiser.parameters(), state["average"], strict=True):
        parameter.data.copy_(value)
    path = save_half(shipped_state(denoiser), output or weights_of(name))
    card = training_card(name, rows, state)
    card["parameters"] = sum(p.numel() for p in denoiser.parameters())
    card["shipped_bytes"] = path.stat().st_size
    card_of(path).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def training_card(name: str, rows: list[dict], state: dict) -> dict:
    """Return what a card says of training: settings of every start, length, machine, summary of the curve."""
    starts = [row for row in rows if "started_at_step" in row]
    steps = [row for row in rows if "pictures" in row]
    checks = [row for row in rows if "validation" in row]
    return {
        "model": name,
        "training": {
            "starts": starts,
            "steps": state["step"],
            "pictures_seen": state["pictures"],
            "cpu_minutes": round(state["seconds"] / 60, 1),
            "device": describe_device("cpu"),
            "packages": package_versions(),
            "curve": [_rounded(row) for row in _spread(steps)],
            "validation_curve": _spread(checks),
        },
    }


def _spread(rows: list[dict]) -> list[dict]:
    """Return about 24 rows, spread evenly, the last one among them."""
    every = max(1, len(rows) // _CURVE_POINTS)
    return rows[::-1][::every][::-1]


def _rounded(row: dict) -> dict:
    return {**row, "rate": float(f"{row['rate']:.3g}"), "loss": round(row["loss"], 4)}


if __name__ == "__main__":
    typer.run(export)
