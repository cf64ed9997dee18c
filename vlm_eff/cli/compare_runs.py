"""`vlm-eff compare`: runs of one task side by side, with what can be said of their difference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from vlm_eff.cli.output import print_json, print_table, print_text, progress, say
from vlm_eff.eval.report.cells import Cells, notes, tables
from vlm_eff.eval.runs.folder import read_run
from vlm_eff.eval.stats.comparison import Compared, compare_runs
from vlm_eff.eval.stats.thresholds import missed, read_thresholds


@dataclass(frozen=True)
class CompareOptions:
    """What the command line said."""

    reference: Path
    runs: list[Path]
    by: list[str]
    fail_under: str | None
    across_models: bool
    seed: int
    as_json: bool


def compare_folders(options: CompareOptions) -> None:
    """Print the comparison; leave with code 1 where a threshold of --fail-under is missed."""
    thresholds = read_thresholds(options.fail_under) if options.fail_under is not None else {}
    with progress("reading and comparing the runs"):
        # `compare FOLDER/bare FOLDER/*` names the reference among the runs as well
        named = [folder for folder in options.runs if folder.resolve() != options.reference.resolve()] or options.runs
        reference, *others = (read_run(folder) for folder in (options.reference, *named))
        found = compare_runs(reference, others, by=options.by, across_models=options.across_models, seed=options.seed)
    failures = missed(found, thresholds) if thresholds else []
    if options.as_json:
        print_json(found.to_dict() | {"missed": failures})
    else:
        print_compared(found)
    for failure in failures:
        say(failure)
    if failures:
        raise typer.Exit(1)


def print_compared(found: Compared) -> None:
    """Print the tables of a comparison, and what has to be said of them."""
    for cells in tables(found):
        print_table(table_of(cells))
    print_text("\n".join(notes(found)))


def table_of(cells: Cells) -> Table:
    """A table for the terminal; labels hold brackets, which must not be taken for markup."""
    table = Table(title=Text(cells.title), title_justify="left")
    for name in cells.head:
        table.add_column(Text(name), overflow="fold")
    for line in cells.lines:
        style = "italic" if line.kind == "baseline" else ""
        table.add_row(*(Text(cell, style=style) for cell in line.cells))
    return table
