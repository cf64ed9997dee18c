"""`vlm-eff demo` and its options."""

from __future__ import annotations

from typing import Annotated

import typer

from vlm_eff.cli.options import Attention, Device, Dtype, Model


def demo_command(
    model: Model = None,
    diffusion: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_HUB_ID", help="Pipeline that draws; default: the small UNet.")
    ] = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Offer this plugin by name: a preset FILE.json, or a spec that names files."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve at; beyond this machine it has no passwords.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open a browser.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
) -> None:
    """Open a page that shows what plugins keep, save and change, on your own pictures."""
    from vlm_eff.cli.demo import DemoOptions, run_demo

    run_demo(DemoOptions(model, diffusion, tuple(offer or ()), host, port, browser, dtype, device, attn))
