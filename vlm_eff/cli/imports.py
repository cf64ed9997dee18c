"""`vlm-eff import`: per-sample files of another harness as runs that `compare` reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.table import Table

from vlm_eff.cli.output import print_json, print_table
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.bridges.imports import import_runs
from vlm_eff.eval.bridges.lmms_samples import read_lmms
from vlm_eff.eval.bridges.vlmevalkit_predictions import read_vlmevalkit
from vlm_eff.eval.runs.folder import Run

_READERS = {"lmms": read_lmms, "vlmevalkit": read_vlmevalkit}


def import_files(
    tool: str,
    files: list[Path],
    output: Path,
    *,
    metric: str | None,
    label: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Write a run for each file and say what is in it."""
    if tool not in _READERS:
        raise ConfigError(explain(f"tool {tool!r}", ", ".join(_READERS), "Name the harness that wrote the files"))
    runs = import_runs(files, output, partial(_READERS[tool], metric=metric, label=label, model=model))
    if as_json:
        print_json([_summary(run) for run in runs])
        return
    table = Table("run", "task", "model", "plugins", "items", "score", "metric", "empty", "errors", "not told")
    for run in runs:
        made = _summary(run)
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in made.values()))
    print_table(table)


def _summary(run: Run) -> dict[str, object]:
    samples, header = list(run.samples.values()), run.header
    return {
        "run": str(run.folder),
        "task": header.task["name"],
        "model": header.model,
        "plugins": header.label,
        "items": len(samples),
        "score": sum(sample.score for sample in samples) / len(samples),
        "metric": header.task["metric"],
        "empty": sum(sample.status == "empty" for sample in samples),
        "errors": sum(sample.status == "error" for sample in samples),
        "not_told": ", ".join(header.task["imported"]["not_told"]),
    }
