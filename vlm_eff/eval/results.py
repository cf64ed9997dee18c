"""The record of methods at equal budgets as Markdown: a short table for the README, a page with everything."""

from __future__ import annotations

from typing import Any

from vlm_eff.eval.record import Record
from vlm_eff.eval.stats.baselines import BLIND, DOWNSIZE

BASELINES = (*BLIND, DOWNSIZE)
# chance in the bare model, so it compares nothing
_LEFT_OUT = {"relation"}

Row = dict[str, Any]


def first_table(record: Record, real: Record) -> str:
    """Scenes of both reference models at every budget, for what was measured on both; no row is picked by hand.

    record: of the bundled model; real: of the model of real weights, whose time to the first token is shown as well
    """
    parts = [(name, one, budget) for name, one in (("bundled", record), ("real", real)) for budget in _budgets(one)]
    rows = [{(row["method"], row["n_eq_asked"]): row for row in one.result["rows"]} for one in (record, real)]
    both = {name for name, _ in rows[0]} & {name for name, _ in rows[1]} - {"bare"}
    timed = _budgets(real)[1]
    titles = [f"{name} {budget / _tokens(one):.0%}" for name, one, budget in parts]
    lines = [f"| method | {' | '.join(titles)} | first token at {timed / _tokens(real):.0%} |"]
    lines.append("|" + "---|" * (len(parts) + 2))
    bare = [_percent(_scenes(rows[one is real][("bare", None)])) for _, one, _ in parts]
    lines.append(f"| bare | {' | '.join(bare)} | 1 |")

    def order(name: str) -> tuple[bool, float]:
        found = [rows[1].get((name, budget)) for budget in _budgets(real)]
        return name in BASELINES, -sum(_scenes(row) for row in found if row)

    for name in sorted(both, key=order):
        found = [rows[one is real].get((name, budget)) for _, one, budget in parts]
        cells = [_percent(_scenes(row)) if row else "-" for row in found]
        time = rows[1][(name, timed)].get("first_token")
        cells.append("-" if time is None else f"{time['ratio']:.2f} [{time['low']:.2f}, {time['high']:.2f}]")
        lines.append(f"| {f'*{name}*' if name in BASELINES else f'`{name}`'} | {' | '.join(cells)} |")
    pairs = real.config["timed_pairs"]
    note = (
        "Right answers to questions about held-out scenes, per cent, at these shares of the visual tokens, averaged "
        "over the decoder's layers (n_eq); in the order of the means on the real weights, in italics what looks at "
        "nothing; *downsize* shows pictures with that share of their pixels, on which these models of one resolution "
        "spend all tokens again. "
        f"{_unreached(record)}"
        f"bundled: {_tokens(record)} tokens, {record.config['layers']} layers, {_scene_count(record)}. "
        f"real: {_tokens(real)} tokens, {real.config['layers']} layers, {_scene_count(real)}. First token: with the "
        f"method / bare on the real weights, median of {pairs} interleaved pairs [95 % interval]. {_machine(record)}."
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


def _scene_count(record: Record) -> str:
    return f"N = {record.config['tasks']['scenes']['items']}"


def _unreached(record: Record) -> str:
    there = record.result["unreachable"]
    return '"-": the method cannot reach the budget on a decoder this shallow. ' if there else ""


def _conditions(record: Record) -> str:
    return f"Model: {record.model}, {_machine(record)}."


def _machine(record: Record) -> str:
    dtype, packages = record.config["settings"]["dtype"], record.packages
    return (
        f"{dtype}, {record.device}, torch {packages['torch']}, transformers {packages['transformers']}, {record.date}"
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
