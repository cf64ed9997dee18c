"""A report of runs as one HTML file that loads nothing from elsewhere, or as Markdown without plots."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import jinja2

import vlm_eff
from vlm_eff.eval.report.cells import Cells, Line, notes, tables
from vlm_eff.eval.report.plots import Plot, group_plot, layers_plot, pareto_plots
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.stats.comparison import Compared
from vlm_eff.eval.stats.interval import Interval

# of each direction and run; the rest is counted
MOST_FLIPS = 40
# a breakdown into more parts, such as one a picture, tells nothing as a table
MOST_PARTS = 60
# of Markdown and of the HTML that it may hold
_MARKS = re.compile(r"([\\`*_\[\]<>|~$#&])")


@dataclass(frozen=True)
class Flip:
    """One item whose answer went from right to wrong or back."""

    id: str
    prompt: str
    gold: str
    before: str
    after: str


@dataclass(frozen=True)
class Flips:
    """What one run changed: how many items in a direction, and the first of them."""

    title: str
    count: int
    shown: tuple[Flip, ...]


def html_report(
    runs: Sequence[Run], compared: Compared, times: Mapping[str, Interval], timing: str | None = None
) -> str:
    """Render the page.

    runs:   in the order of `compared.rows`, the reference first
    times:  ratio of the time to the first token to that of the bare model, by label of a run
    timing: where these times come from

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["inline"] = inline
    template = environment.from_string(files("vlm_eff.eval.report").joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        version=vlm_eff.__version__,
        task=runs[0].header.task,
        about=_about(runs, compared),
        headers=[_header(run, row.summary.label) for run, row in zip(runs, compared.rows, strict=True)],
        tables=tables(compared, times),
        notes=[*notes(compared), *([timing] if timing else [])],
        plots=_plots(compared, times),
        flips=_flips(runs, compared),
    )


def markdown_report(
    runs: Sequence[Run], compared: Compared, times: Mapping[str, Interval], timing: str | None = None
) -> str:
    """Render the tables and notes of the page as Markdown; see `html_report`."""
    task = runs[0].header.task
    parts = [f"# {_escaped(str(task['name']))}: {len(runs)} runs", _markdown_table(_about(runs, compared))]
    for cells in tables(compared, times):
        parts += [f"## {_escaped(cells.title)}", _markdown_table(cells)]
    said = [*notes(compared), *([timing] if timing else [])]
    return "\n\n".join([*parts, *(_escaped(note) for note in said)]) + "\n"


def inline(plot: Plot) -> str:
    """A plot as a data URL."""
    return "data:image/png;base64," + base64.b64encode(plot.png).decode("ascii")


def listed_breakdowns(run: Run) -> tuple[list[str], list[str]]:
    """Names of the breakdowns that are shown, and of those with too many parts for it."""
    parts: dict[str, set[str]] = {}
    for sample in run.samples.values():
        for name, part in sample.groups.items():
            parts.setdefault(name, set()).add(part)
    names = sorted(parts)
    return [n for n in names if len(parts[n]) <= MOST_PARTS], [n for n in names if len(parts[n]) > MOST_PARTS]


def _about(runs: Sequence[Run], compared: Compared) -> Cells:
    head = ("run", "model", "device", "packages", "N", "date", "folder")
    lines = []
    for run, row in zip(runs, compared.rows, strict=True):
        header = run.header
        packages = ", ".join(f"{name} {version}" for name, version in sorted(header.packages.items()))
        cells = (row.summary.label, header.model, header.device, packages, str(row.summary.items), header.date)
        lines.append(Line(row.summary.kind, (*cells, run.folder.name)))
    task = runs[0].header.task
    return Cells(f"What was asked: {task['name']} {task['version']}, metric {task['metric']}", head, tuple(lines))


def _plots(compared: Compared, times: Mapping[str, Interval]) -> list[Plot]:
    layers = layers_plot(compared)
    bars = [group_plot(compared, name, groups) for name, groups in compared.groups.items()]
    return [*pareto_plots(compared, times), *([layers] if layers else []), *bars]


def _flips(runs: Sequence[Run], compared: Compared) -> list[Flips]:
    made = []
    for run, row in zip(runs, compared.rows, strict=True):
        if row.paired is None:
            continue
        for what, ids in (("right to wrong", row.paired.worse), ("wrong to right", row.paired.better)):
            shown = tuple(_flip(runs[0], run, name) for name in ids[:MOST_FLIPS])
            made.append(Flips(f"{row.summary.label}: {what}", len(ids), shown))
    return [flips for flips in made if flips.count]


def _flip(reference: Run, run: Run, name: str) -> Flip:
    before, after = reference.samples[name], run.samples[name]
    answers = [sample.error or sample.answer for sample in (before, after)]
    return Flip(name, before.prompt, json.dumps(before.gold, ensure_ascii=False), *answers)


def _header(run: Run, label: str) -> dict[str, Any]:
    return {"label": label, "text": json.dumps(asdict(run.header), indent=2, ensure_ascii=False)}


def _markdown_table(cells: Cells) -> str:
    lines = ["| " + " | ".join(_escaped(name) for name in cells.head) + " |", "|" + "---|" * len(cells.head)]
    for line in cells.lines:
        texts = [_escaped(cell) for cell in line.cells]
        if line.kind == "baseline":
            texts[0] = f"*{texts[0]}*"
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\1", " ".join(text.split()))
