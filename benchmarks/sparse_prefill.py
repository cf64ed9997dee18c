"""Answers of the bundled model while its prefill attends in some pairs of tokens only.

    python benchmarks/sparse_prefill.py      # a quarter of an hour on one core

Every token stays, so methods are compared by the share of pairs that they list. Blocks are 16 x 16 here: a prompt has
about 160 tokens, and a method that cannot leave out less than 128 x 64 could not be told from dense attention.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import typer

from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.reference.evaluate import Sample, evaluate_reference, scene_samples
from vlm_eff.reference.machine import describe_device
from vlm_eff.tokens import cross_modal_window, streaming_heads, top_blocks, vertical_slash

TILE = (16, 16)


def plugins() -> dict[str, Plugin]:
    """Every pattern at several budgets, by its setting."""
    made: dict[str, Plugin] = {
        f"cross_modal_window window={w}": cross_modal_window(w, tile=TILE) for w in (48, 24, 12, 4, 1)
    }
    made |= {f"streaming_heads local={n}": streaming_heads(sinks=4, local=n, tile=TILE) for n in (96, 48, 24)}
    for count in (8, 4, 2):
        made[f"top_blocks keep_count={count}"] = top_blocks(keep_count=count, tile=TILE)
    for verticals, slashes in ((64, 16), (32, 8), (16, 4)):
        plugin = vertical_slash(verticals, slashes, last=16, sinks=4, local=4, tile=TILE)
        made[f"vertical_slash verticals={verticals} slashes={slashes}"] = plugin
    return made


def ask(subject: Any, samples: list[Sample], plugin: Plugin | None) -> dict[str, Any]:
    """Accuracy, and the share of pairs that layers listed, over the prompts of all batches."""
    if plugin is None:
        right = evaluate_reference(subject.model, subject.processor, samples)
        return {"listed": 1.0, "accuracy": right["all"]}
    with attach(subject.model, plugin) as handle:
        right = evaluate_reference(subject.model, subject.processor, samples)
        reports = [report for report in handle.stats().prefills if report.listed_per_layer]
    listed = mean(mean(report.listed_per_layer) for report in reports)
    return {"listed": listed, "accuracy": right["all"]}


def main(
    output: Path = typer.Option(Path("benchmarks/results/sparse_prefill.json"), help="Where the record goes."),  # noqa: B008
    scenes: int = typer.Option(60, help="Held-out scenes; up to nine questions each."),
) -> None:
    """Measure every setting, print a table and write a record."""
    quiet_libraries()
    subject = load_subject()
    samples = scene_samples("test", scenes)
    made = plugins()
    rows = []
    for name, plugin in {"bare": None, **made}.items():
        row = {"plugin": name, **ask(subject, samples, plugin)}
        rows.append(row)
        typer.echo(f"{name:44} pairs listed {row['listed']:.2f}  right {row['accuracy']:.3f}")
    Record(
        task="exact match of greedy answers on held-out scenes, prefill attention in chosen pairs",
        task_version="1",
        model=subject.name,
        config={"plugins": {name: plugin.to_dict() for name, plugin in made.items()}, "dtype": "float32", "batch": 64},
        device=describe_device("cpu"),
        n=len(samples),
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
