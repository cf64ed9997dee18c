"""Compared runs as cells of text, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vlm_eff.eval.stats.comparison import Compared, Row
from vlm_eff.eval.stats.interval import Interval
from vlm_eff.eval.stats.paired import Part

ABSENT = "-"
VTC_HEAD = ("run", "downsized run", "its tokens", "hard items", "reference", "run", "easy items", "reference", "run")


@dataclass(frozen=True)
class Line:
    """One line of a table; baselines are shown in italics."""

    kind: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Cells:
    """A table: its title, the names of its columns, its lines."""

    title: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "run": lambda row: row.summary.label,
    "accuracy": lambda row: with_interval(row.summary.accuracy),
    "delta [95 %]": lambda row: with_interval(row.paired.delta, signed=True) if row.paired else ABSENT,
    "p": lambda row: p_text(row),
    "relative": lambda row: share(row.paired.relative) if row.paired else ABSENT,
    "loyalty": lambda row: share(row.paired.loyalty) if row.paired else ABSENT,
    "flips -/+": lambda row: f"{len(row.paired.worse)}/{len(row.paired.better)}" if row.paired else ABSENT,
    "unparsed/empty/error": lambda row: "/".join(
        share(row.summary.rates[status]) for status in ("unparsed", "empty", "error")
    ),
    "new tokens": lambda row: f"{row.summary.new_tokens:.1f}",
    "n_eq": lambda row: number(row.summary.costs["n_eq"], 1),
    "FLOPs": lambda row: number(row.summary.costs["flops_ratio"], 2),
    "KV bytes": lambda row: number(row.summary.costs["kv_bytes_ratio"], 2),
}


def tables(compared: Compared, times: Mapping[str, Interval] | None = None) -> list[Cells]:
    """All tables there is something to say in; see `main_table`."""
    some = (main_table(compared, times), metric_table(compared), vtc_table(compared))
    return [cells for cells in some if cells] + group_tables(compared)


def main_table(compared: Compared, times: Mapping[str, Interval] | None = None) -> Cells:
    """One line a run: accuracy, what changed against the reference, and costs.

    times: ratio of the time to the first token to that of the bare model, by label of a run; None leaves the column out
    """
    columns = dict(_COLUMNS)
    if times:
        columns["first token"] = lambda row: _time(row, times)
    lines = tuple(Line(row.summary.kind, tuple(read(row) for read in columns.values())) for row in compared.rows)
    return Cells("Runs", tuple(columns), lines)


def group_tables(compared: Compared) -> list[Cells]:
    """One table a breakdown: its parts as lines, runs as columns."""
    made = []
    labels = [row.summary.label for row in compared.rows]
    for name, groups in compared.groups.items():
        lines = []
        for group in groups:
            texts = [with_interval(cell.accuracy) for cell in group.cells[:1]]
            texts += [f"{percent(c.accuracy.value)}, {with_interval(c.delta, signed=True)}" for c in group.cells[1:]]
            lines.append(Line("group", (group.name, str(group.items), str(group.clusters), *texts)))
        made.append(Cells(f"By {name}", (name, "items", "clusters", *labels), tuple(lines)))
    return made


def metric_table(compared: Compared) -> Cells | None:
    """What the task's metric makes of all items beside their mean; None where that is all it says."""
    names = list(dict.fromkeys(name for row in compared.rows for name in row.summary.by_metric))
    if not names:
        return None
    lines = [
        Line(row.summary.kind, (row.summary.label, *(number(row.summary.by_metric.get(name), 4) for name in names)))
        for row in compared.rows
    ]
    return Cells("By the task's own metric", ("run", *names), tuple(lines))


def vtc_table(compared: Compared) -> Cells | None:
    """Accuracy apart on the items that smaller pictures get wrong, and on those they get right; None without them."""
    lines = []
    for row in compared.rows:
        if row.paired is not None and (vtc := row.paired.vtc) is not None:
            cells = (row.summary.label, vtc.downsized, number(vtc.n_eq, 1), *_part(vtc.hard), *_part(vtc.easy))
            lines.append(Line(row.summary.kind, cells))
    return Cells("Apart by what smaller pictures do", VTC_HEAD, tuple(lines)) if lines else None


def notes(compared: Compared) -> list[str]:
    """What the columns mean, and what a reader has to know of these runs."""
    first = compared.rows[0].summary
    said = [
        f"N = {first.items} items in {first.clusters} clusters (pictures or videos; an item without one is its own). "
        "Accuracy is the mean score in per cent, with its 95 % interval over whole clusters."
    ]
    tests = sorted({row.paired.test.test for row in compared.rows if row.paired})
    if tests:
        said.append(
            f"Against {first.label}: delta in points with its 95 % interval (paired bootstrap over clusters), "
            f"p of no difference ({'; '.join(tests)}), relative accuracy, loyalty (share of equal answers), flips "
            "(right to wrong/wrong to right). n_eq: visual tokens averaged over the decoder's layers. FLOPs and KV "
            "bytes: decoder, prompt, with the plugin / bare."
        )
    if any(row.summary.kind == "baseline" for row in compared.rows):
        said.append("In italics: baselines, which look at nothing.")
    if compared.groups and tests:
        said.append("By group: accuracy, then delta. Intervals are not widened for looking at many groups.")
    return said + ([compared.beaten] if compared.beaten else []) + list(compared.remarks)


def with_interval(found: Interval | None, *, signed: bool = False) -> str:
    """A share as per cent with its interval."""
    if found is None:
        return ABSENT
    form = "{:+.1f}" if signed else "{:.1f}"
    text = form.format(100 * found.value)
    if found.low is None or found.high is None:
        return f"{text} [-]"
    return f"{text} [{form.format(100 * found.low)}, {form.format(100 * found.high)}]"


def p_text(row: Row) -> str:
    """The p value, as short as it can be told."""
    if row.paired is None:
        return ABSENT
    return "<0.001" if row.paired.test.p < 0.001 else f"{row.paired.test.p:.3f}"


def percent(value: float | None) -> str:
    """A share in per cent, without the sign for it."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return ABSENT if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int) -> str:
    """A number, or that there is none."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def _time(row: Row, times: Mapping[str, Interval]) -> str:
    found = times.get(row.summary.label)
    if found is None:
        return "1" if row.summary.kind == "bare" else ABSENT
    if found.low is None or found.high is None:
        return f"{found.value:.2f} [-]"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _part(part: Part) -> tuple[str, str, str]:
    return str(part.items), percent(part.reference), percent(part.accuracy)
