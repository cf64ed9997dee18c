"""The records of operations as Markdown: their plain forms on a processor, and answers under sparse prefill."""

from __future__ import annotations

from typing import Any

from vlm_eff.eval.record import Record

# what a row of kernels_cpu.json says of its measurement; everything else in it is what was measured
_MEASURED = ("against", "time_ratio", "time_ratio_interval", "operation_ms", "against_ms", "pairs")


def processor_table(record: Record) -> str:
    """The record of `benchmarks/kernels_cpu.py`: a line for each case, in its sections."""
    lines = ["| operation | case | time, as a ratio |", "|---|---|---|"]
    for section, rows in record.result.items():
        cases: dict[str, list[str]] = {}
        for row in rows:
            low, high = row["time_ratio_interval"]
            ratio = f"{row['time_ratio']:.2f} [{low:.2f}, {high:.2f}] of {row['against']}"
            cases.setdefault(_case(row), []).append(ratio)
        lines += [f"| `{section}` | {case} | {'; '.join(ratios)} |" for case, ratios in cases.items()]
    pairs = sorted({row["pairs"] for rows in record.result.values() for row in rows})
    note = (
        "CPU time of the operation / of what it is measured against: median of interleaved pairs "
        f"({' or '.join(map(str, pairs))} a row) [95 % interval]; below 1 the operation is faster. Heads of "
        f"{record.config['width']} numbers, {record.config['threads']} thread, {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def patterns_table(record: Record) -> str:
    """The record of `benchmarks/sparse_prefill.py`."""
    lines = ["| prefill attends | pairs listed | right |", "|---|---|---|"]
    for row in record.result:
        name = "everywhere" if row["plugin"] == "bare" else f"`{row['plugin']}`"
        lines.append(f"| {name} | {row['listed']:.0%} | {row['accuracy']:.1%} |")
    note = (
        f"Exact match on N = {record.n} questions about held-out scenes. Pairs of tokens are counted in blocks of "
        f"16 x 16, as they are computed. {record.model}, {record.config['dtype']}, {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def _case(row: dict[str, Any]) -> str:
    named = [f"{name} {value}" for name, value in row.items() if name not in (*_MEASURED, "case", "dtype")]
    return ", ".join([row["case"], *([row["dtype"]] if "dtype" in row else []), *named])
