"""`vlm-eff bench`: what plugins cost and save, each beside the bare model, in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import vlm_eff
from vlm_eff.cli.output import print_json, print_table, say
from vlm_eff.cli.run import together_of
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.compare import timing_label
from vlm_eff.eval.costs.bench import BARE, BenchRow, Timing, bench
from vlm_eff.eval.costs.cases import Source, grid
from vlm_eff.eval.costs.machine import fingerprint
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.eval.subject import Subject, open_image

QUANTITIES = ("ttft", "tpot", "e2e")
TASK = "costs of one call, bare and with plugins, in interleaved pairs"
# what the definitions of docs/costs.md are called
TASK_VERSION = "costs 1"


@dataclass(frozen=True)
class BenchOptions:
    """What the command line said; axes are lists of numbers with commas between."""

    plugins: list[str]
    images: list[Path]
    prompt: str
    axes: dict[str, str]
    timing: Timing
    model: str | None
    dtype: str
    device: str
    attention: str
    as_json: bool
    output: Path | None


def run_bench(options: BenchOptions) -> None:
    """Measure every combination, print one table or one JSON document, and write the record."""
    arms = arms_of(options.plugins)
    pictures = [open_image(path) for path in options.images]
    axes = {name: numbers(name, text) for name, text in options.axes.items()}
    if pictures and not options.axes["images"]:
        axes["images"] = [len(pictures)]
    cases = grid(**{name: values for name, values in axes.items() if values})
    if options.output is not None:
        check_place(options.output)
    quiet_libraries()
    say("loading the model")
    subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    before = fingerprint(subject)
    source = Source(tuple(pictures), options.prompt)
    rows = bench(subject, cases, arms, source=source, timing=options.timing, told=say)
    record = record_of(subject, arms, rows, options, [before, fingerprint(subject)])
    if options.output is not None:
        record.write(options.output)
    if options.as_json:
        print_json(record.to_dict())
    else:
        print_table(bench_table(rows, options.timing, timing_label(subject)))


def arms_of(specs: list[str]) -> dict[str, tuple[Plugin, ...]]:
    """Plugins by the spec of the arm; one with " + " holds several that are attached together.

    Raises:
        ConfigError: none, one twice, or one that cannot be read.
    """
    if not specs:
        raise ConfigError(explain("no --plugin", "one or more", "Name what to measure, such as --plugin fastv"))
    if BARE in specs:
        raise ConfigError(explain(f"--plugin {BARE}", "a method", "Leave it out: the bare model is always measured"))
    return together_of(specs)


def numbers(name: str, text: str) -> list[int]:
    """Whole numbers with commas between; [] for an empty text.

    Raises:
        ConfigError: something else.
    """
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        option = f"--{name.replace('_', '-')} {text}"
        raise ConfigError(explain(option, "whole numbers with commas between, such as 1,4", "Correct it")) from None


def record_of(
    subject: Subject,
    arms: dict[str, tuple[Plugin, ...]],
    rows: list[BenchRow],
    options: BenchOptions,
    machine: list[dict[str, Any]],
) -> Record:
    """The rows with everything that is needed to judge and repeat them; n is the number of pairs."""
    timing = options.timing
    config = {
        "plugins": {name: [plugin.to_dict() for plugin in together] for name, together in arms.items()},
        "axes": options.axes,
        "prompt": options.prompt or "made up",
        "pictures": [path.name for path in options.images] or "made up",
        "pairs": timing.pairs,
        "warmup": timing.warmup,
        "seed": timing.seed,
        "timing": timing_label(subject),
        "machine": {"before": machine[0], "after": machine[1]},
    }
    return Record(
        task=TASK,
        task_version=f"{TASK_VERSION}; vlm-eff {vlm_eff.__version__}",
        model=subject.name,
        config=config,
        device=machine[0]["device"],
        n=timing.pairs,
        result=[row.to_dict() for row in rows],
    )


def bench_table(rows: list[BenchRow], timing: Timing, label: str) -> Table:
    """One row a case and arm; times of the bare row are milliseconds, the others ratios."""
    axes = [name for name in rows[0].case.to_dict() if len({row.case.to_dict()[name] for row in rows}) > 1]
    first = rows[0].case.to_dict()
    fixed = ", ".join(f"{name.replace('_', ' ')} {first[name]}" for name in first if name not in axes and first[name])
    said = list(dict.fromkeys(f"{row.arm}: {note}" for row in rows for note in row.notes))
    caption = (
        f"{fixed}; with the plugin / bare: median of {timing.pairs} interleaved pairs [95 % interval] after "
        f"{timing.warmup} of each thrown away; bare: ms of one call; {label}; answers forced to equal length"
    )
    if said:
        caption += "; " + "; ".join(said)
    heads = (*QUANTITIES, "tokens out", "n_eq", "KV bytes", "prefill FLOPs", "peak memory")
    table = Table(*(name.replace("_", " ") for name in axes), "", *heads, caption=caption)
    for row in rows:
        at = [str(row.case.to_dict()[name]) for name in axes]
        table.add_row(*at, row.arm, *(_cells(row) if row.costs is not None else [f"{row.status}: {row.reason}"]))
    return table


def _cells(row: BenchRow) -> list[str]:
    costs = row.costs
    assert costs is not None
    times = []
    for name in QUANTITIES:
        alone = costs[f"{name}_ms"]
        if row.arm == BARE:
            times.append("-" if alone is None else f"{alone:.1f} ms")
        else:
            times.append(str(row.ratios.get(name, "-")))
    flops = costs["flops"]
    counted = "not counted" if flops is None else f"{flops['prefill']['measured']['total']:.3g}"
    memory = f"{costs['peak_mem_bytes']['above_weights']:,}"
    return [*times, str(costs["output_tokens"]), f"{costs['n_eq']:.1f}", f"{costs['kv_bytes']:,}", counted, memory]
