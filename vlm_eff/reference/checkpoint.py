"""Checkpoints of training: in full or not at all, and an interrupted write leaves the earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the whole state."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def read_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """Read what `write_checkpoint` wrote; tensors and plain values only.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"got {path}, which is not there; accepted is a checkpoint; leave out --resume")
    return torch.load(path, map_location=device, weights_only=True)


def checkpoint_in(output: Path, *, resume: bool, minutes: float | None, steps: int | None) -> Path:
    """Where a training script keeps its checkpoint, after a check of what it was asked; makes the folder.

    Raises:
        BadParameter: both or neither of minutes and steps, or a checkpoint that a new run would overwrite.
    """
    if (minutes is None) == (steps is None):
        raise typer.BadParameter("got both or neither of --minutes and --steps; accepted is one of them; give one")
    checkpoint = output / "checkpoint.pt"
    if not resume and checkpoint.exists():
        raise typer.BadParameter(f"got {output}, which holds a checkpoint; use --resume or another folder")
    output.mkdir(parents=True, exist_ok=True)
    return checkpoint
