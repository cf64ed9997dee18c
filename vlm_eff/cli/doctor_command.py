"""The declaration of `vlm-eff doctor`; what it does is in `doctor.py`, which is imported when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from vlm_eff.cli.options import Attention, Json


def doctor_command(
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Which methods attach: a folder, a hub id, or bundled."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Whether kernels run: auto, cpu, cuda, cuda:1. Imports torch.")
    ] = None,
    attn: Attention = "sdpa",
    json: Json = False,
) -> None:
    """Say what is installed, what is missing, what was tested, and what a device and a model can carry."""
    from vlm_eff.cli.doctor import examine

    examine(device, model, attn, as_json=json)
