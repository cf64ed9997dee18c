"""The commands, their options, and how errors leave the program."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlm_eff import __version__
from vlm_eff.core.errors import ConfigError, VlmEffError


class _Commands(TyperGroup):
    """Turns our errors into one sentence on stderr; a traceback is for our own mistakes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VlmEffError as error:
            typer.echo(f"vlm-eff: {error}", err=True)
            # a method, argument or value that cannot be: the command line was wrong, not the work
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plugins that make vision-language models faster and smaller without changing the model.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="FOLDER_OR_HUB_ID", help="Default: the model that comes along.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: float32 on a CPU, bfloat16 elsewhere.")]
Attention = Annotated[str, typer.Option("--attn", help="Attention of the model: sdpa or eager.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlm-eff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Plugins that make vision-language models faster and smaller without changing the model."""


@app.command("methods")
def methods_command(json: Json = False) -> None:
    """List every method: what it acts on, where it comes from, what it was tested with."""
    from vlm_eff.cli.methods import show_methods

    show_methods(as_json=json)


def main() -> None:
    """Run the command line."""
    app()
