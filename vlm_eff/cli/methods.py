"""`vlm-eff methods`: the registry as a table."""

from __future__ import annotations

from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, say
from vlm_eff.core.registry import BROKEN_ENTRY_POINTS
from vlm_eff.eval.catalogue import families_text, method_rows


def show_methods(*, as_json: bool) -> None:
    """Print every registered method; packages whose entry point failed are named on stderr."""
    rows = method_rows()
    for name, problem in BROKEN_ENTRY_POINTS.items():
        say(f"the installed method {name!r} cannot be used: {problem}")
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    table = Table("method", "room", "acts", "paper", "training-free", "tested families")
    for row in rows:
        free = "yes" if row.training_free else "no"
        table.add_row(row.name, row.room, row.acts, row.paper, free, families_text(row))
    print_table(table)
