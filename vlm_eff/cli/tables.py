"""What was found of the arms of a sweep, as a table."""

from __future__ import annotations

from rich.table import Table

from vlm_eff.eval.record import Record


def sweep_table(record: Record) -> Table:
    """One row an arm, one group of columns a task."""
    tasks = list(record.config["tasks"])
    table = Table("", *(f"{name}: accuracy" for name in tasks))
    for row in record.result["rows"]:
        table.add_row(row["label"], *(f"{100 * row['tasks'][name]['accuracy']:.1f}" for name in tasks))
    return table
