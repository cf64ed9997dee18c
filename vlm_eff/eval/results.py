"""The record of methods at equal budgets as Markdown: a short table for the README, a page with everything."""

from __future__ import annotations

from typing import Any

from vlm_eff.eval.record import Record
from vlm_eff.eval.stats.baselines import BLIND, DOWNSIZE

BASELINES = (*BLIND, DOWNSIZE)
# chance in the bare model, so it compares nothing
_LEFT_OUT = {"relation"}

Row = dict[str, Any]


def summary_table(record: Record) -> str:
    """One line a method: accuracy on scenes, on their localisation questions and on easy-VQA at every budget."""
    tokens, budgets = _tokens(record), _budgets(record)
    shares = [f"{budget / tokens:.0%}" for budget in budgets]
    rows = {(row["method"], row["n_eq_asked"]): row for row in record.result["rows"]}
    # a method with arguments behind it is a variant, which only the page shows
    at_budget = [row["method"] for row in record.result["rows"] if row["n_eq_asked"] and ":" not in row["method"]]
    names = list(dict.fromkeys(at_budget))
    names = sorted(names, key=lambda name: (name in BASELINES, name))
    columns = [("scenes", _scenes), ("locate", _locate), ("easy-VQA", _easy)]
    titles = " | ".join(f"{title} {share}" for title, _ in columns for share in shares)
    lines = [f"| method | {titles} |", "|" + "---|" * (1 + len(columns) * len(shares))]
    bare = rows[("bare", None)]
    lines.append("| bare | " + " | ".join(_percent(value(bare)) for _, value in columns for _ in shares) + " |")
    for name in names:
        cells = [rows.get((name, budget)) for budget in budgets]
        shown = [_percent(value(cell)) if cell else "-" for _, value in columns for cell in cells]
        label = f"*{name}*" if name in BASELINES else f"`{name}`"
        lines.append(f"| {label} | {' | '.join(shown)} |")
    note = (
        f"Exact match in per cent, with {', '.join(f'{b:g}' for b in budgets)} of {tokens} visual tokens averaged over "
        f"{record.config['layers']} layers (n_eq); in italics the baselines that look at nothing; "
        "*downsize* shows pictures with that share of their pixels; this model has one resolution and spends all "
        "tokens on them. "
        f'"locate": questions where something is. {_unreached(record)}'
        f"{_counts(record)} {_conditions(record)}"
    )
    return "\n".join([*lines, "", note])


def results_page(record: Record) -> str:
    """All numbers of the record: one table a budget, with every question family of the scenes."""
    tokens, parts = _tokens(record), []
    (bare,) = (row for row in record.result["rows"] if row["method"] == "bare")
    for budget in _budgets(record):
        rows = [bare] + [row for row in record.result["rows"] if row["n_eq_asked"] == budget]
        lines = [f"### {budget:g} of {tokens} tokens ({budget / tokens:.0%})", "", *_table(rows, tokens)]
        missing = [label for label in record.result["unreachable"] if label.endswith(f" @ {budget:g}")]
        if missing:
            names = ", ".join(f"`{label.rpartition(' @ ')[0]}`" for label in missing)
            lines += ["", f"Out of reach with {record.config['layers']} layers: {names}."]
        lines += ["", _beaten(rows)]
        parts.append("\n".join(lines))
    own = [row for row in record.result["rows"] if row["n_eq_asked"] is None and row is not bare]
    if own:
        parts.append("\n".join(["### At their own count, with defaults", "", *_table(own, tokens)]))
    note = (
        "FLOPs (decoder), KV bytes and time to first token are with the method / bare; time is the median of "
        f"{record.config['timed_pairs']} interleaved pairs [95 % interval]"
        f"{', CPU, ratios only' if 'CPU' in record.device else ''}. {_counts(record)} "
        f"The family `relation` is left out of the columns: the bare model answers it at chance. {_conditions(record)}"
    )
    return "\n\n".join([*parts, note])


def _table(rows: list[Row], tokens: int) -> list[str]:
    families = [name for name in rows[0]["tasks"]["scenes"]["by"]["family"] if name not in _LEFT_OUT]
    head = ["method", "n_eq", "FLOPs", "KV bytes", "first token", "easy-VQA", "scenes", *families]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [_line(row, tokens, families) for row in sorted(rows, key=_order)]


def _beaten(rows: list[Row]) -> str:
    """Which methods do worse than the best of the baselines that drop tokens without looking."""
    blind = [row for row in rows if row["method"] in ("uniform_grid", "random_drop")]
    others = [row for row in rows if row["method"] not in (*BASELINES, "bare")]
    said = []
    for what, value in (("all scene questions", _scenes), ("localisation", _locate)):
        if not blind:
            continue
        bar = max(value(row) for row in blind)
        losers = [f"`{row['method']}` ({_percent(value(row))})" for row in others if value(row) < bar]
        best = max(blind, key=value)["method"]
        listed = ", ".join(losers) or "none"
        said.append(f"Below `{best}` ({_percent(bar)}) on {what}: {listed}.")
    return " ".join(said)


def _line(row: Row, tokens: int, families: list[str]) -> str:
    if row["method"] in ("bare", "downsize"):
        cells = [row["method"], str(tokens), "1", "1", "1"]
    else:
        costs, time = row["tasks"]["scenes"]["costs"], row.get("first_token")
        cells = [
            f"`{row['method']}`",
            f"{costs['n_eq']:.1f}",
            f"{costs['flops_ratio']:.2f}",
            f"{costs['kv_bytes_ratio']:.2f}",
            f"{time['ratio']:.2f} [{time['low']:.2f}, {time['high']:.2f}]" if time else "-",
        ]
    cells += [_percent(_easy(row)), _percent(_scenes(row))]
    cells += [_percent(_family(row, family)) for family in families]
    return f"| {' | '.join(cells)} |"


def _order(row: Row) -> tuple[bool, bool, float]:
    return row["method"] != "bare", row["method"] in BASELINES, -_scenes(row)


def _budgets(record: Record) -> list[float]:
    return sorted({row["n_eq_asked"] for row in record.result["rows"] if row["n_eq_asked"] is not None}, reverse=True)


def _tokens(record: Record) -> int:
    return int(record.config["visual_tokens"])


def _counts(record: Record) -> str:
    tasks = record.config["tasks"]
    scenes, easy = (tasks[name]["items"] for name in ("scenes", "easy-vqa"))
    return f"N = {scenes} questions about held-out scenes, {easy} easy-VQA test questions."


def _unreached(record: Record) -> str:
    there = record.result["unreachable"]
    return '"-": the method cannot reach the budget on a decoder this shallow. ' if there else ""


def _conditions(record: Record) -> str:
    dtype, packages = record.config["settings"]["dtype"], record.packages
    return (
        f"Model: {record.model}, {dtype}, {record.device}, torch {packages['torch']}, "
        f"transformers {packages['transformers']}, {record.date}."
    )


def _scenes(row: Row) -> float:
    return float(row["tasks"]["scenes"]["accuracy"])


def _locate(row: Row) -> float:
    return _family(row, "locate")


def _easy(row: Row) -> float:
    return float(row["tasks"]["easy-vqa"]["accuracy"])


def _family(row: Row, name: str) -> float:
    part = row["tasks"]["scenes"]["by"]["family"].get(name)
    return float("nan") if part is None else float(part["accuracy"])


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"
