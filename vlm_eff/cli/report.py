"""`vlm-eff report`: runs of one task as an HTML page, or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_eff.cli.output import print_text, progress, say
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place, make_folder, write_file
from vlm_eff.eval.report.page import html_report, listed_breakdowns, markdown_report
from vlm_eff.eval.report.times import read_times
from vlm_eff.eval.runs.folder import Run, read_run
from vlm_eff.eval.stats.baselines import is_bare
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.stats.interval import Interval


@dataclass(frozen=True)
class ReportOptions:
    """What the command line said."""

    runs: list[Path]
    output: Path | None
    markdown: bool
    bench: Path | None
    force: bool
    across_models: bool
    seed: int


def write_report(options: ReportOptions) -> None:
    """Write the report in full or not at all; Markdown without an output goes to stdout.

    The bare run is the reference wherever it stands; without one, the first run is.
    """
    place = _place(options)
    with progress("reading and comparing the runs"):
        runs = _bare_first([read_run(folder) for folder in options.runs])
        shown, left_out = listed_breakdowns(runs[0])
        found = compare_runs(runs[0], runs[1:], by=shown, across_models=options.across_models, seed=options.seed)
    for name in left_out:
        say(f"the breakdown {name!r} has too many parts for a table and is left out")
    times: dict[str, Interval] = {}
    timing: str | None = None
    if options.bench is not None:
        labels = [row.summary.label for row in found.rows]
        times, timing = read_times(options.bench, runs, labels, force=options.force)
    with progress("drawing"):
        made = (markdown_report if options.markdown else html_report)(runs, found, times, timing)
    if place is None:
        print_text(made.rstrip("\n"))
        return
    say(f"wrote {write_file(place, made)}")


def _place(options: ReportOptions) -> Path | None:
    """Where the report goes, checked before the work: a name with an ending is a file, another one a folder."""
    place, ending = options.output, ".md" if options.markdown else ".html"
    if place is None:
        if options.markdown:
            return None
        raise ConfigError(explain("no --output", "a folder or an .html file", "Say where the page goes"))
    if place.suffix == "" or place.is_dir():
        return make_folder(place) / f"report{ending}"
    if place.suffix != ending:
        raise ConfigError(explain(f"--output {place}", f"a folder or a file that ends in {ending}", "Rename it"))
    check_place(place)
    return place


def _bare_first(runs: list[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: not is_bare(run.header))
