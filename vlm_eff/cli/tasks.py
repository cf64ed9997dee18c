"""`vlm-eff tasks`: what can be asked, from which files."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, say
from vlm_eff.eval.tasks import TaskSource, all_tasks
from vlm_eff.eval.tasks.source import BROKEN_TASKS


def show_tasks(*, as_json: bool) -> None:
    """Print every task that is registered; packages whose entry point failed are named on stderr."""
    sources = all_tasks()
    for name, problem in BROKEN_TASKS.items():
        say(f"the installed task {name!r} cannot be used: {problem}")
    if as_json:
        print_json([_row(source) for source in sources])
        return
    table = Table("task", "shows", "metric", "splits", "styles", "options", "files of the folder")
    for source in sources:
        row = _row(source)
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        lists = (", ".join(row[name]) for name in ("splits", "styles"))
        table.add_row(row["name"], row["shows"], row["metric"], *lists, options, row["files"] or "none needed")
    print_table(table)


def _row(source: TaskSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "about": source.about,
        "shows": "pictures" if source.sampling is None else "videos",
        "metric": source.metric,
        "splits": list(source.splits),
        "styles": list(source.styles),
        "options": source.options,
        "sampling": None if source.sampling is None else source.sampling.to_dict(),
        "max_new_tokens": source.max_new_tokens,
        "files": source.files,
        "submission": source.submission is not None,
    }
