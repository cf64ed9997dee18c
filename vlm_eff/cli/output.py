"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

# a pipe has no width: wide enough that no cell is cut
_PIPE_WIDTH = 200


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_text(text: str) -> None:
    """Print lines on stdout."""
    typer.echo(text)


def print_table(table: Table) -> None:
    """Print a table on stdout, as wide as the terminal or wide enough for a pipe."""
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def say(text: str) -> None:
    """Print a remark on stderr."""
    typer.echo(f"vlm-eff: {text}", err=True)


def stderr() -> Console:
    """The console for progress bars."""
    return Console(stderr=True)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show on stderr what is going on, where somebody watches."""
    with stderr().status(text):
        yield
