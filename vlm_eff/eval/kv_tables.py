"""The records of the KV cache as Markdown: quality of answers, and memory and time."""

from __future__ import annotations

from typing import Any

from vlm_eff.eval.kv_settings import BITS, SHARES
from vlm_eff.eval.record import Record

Row = dict[str, Any]
# what is kept beyond the share that was asked by more than this is said beside the number
_SAID = 0.02
_WAYS = {
    "seen": "Question seen: the cache is compressed behind the question, before the first token of the answer",
    "unseen": "Question unseen: the cache is compressed behind the picture, and then the question comes",
}


def quality_table(record: Record) -> str:
    """The record of `benchmarks/kv_quality.py`: shares, bits and others, for each way of asking."""
    parts = []
    for ends, title in _WAYS.items():
        rows = [row for row in record.result if row.get(ends)]
        bare = next(row for row in rows if row["kind"] == "bare")
        parts.append(f"### {title}")
        for kind, columns in (("evict", SHARES), ("bits", BITS)):
            if any(row["kind"] == kind for row in rows):
                parts.append(_by_column([row for row in rows if row["kind"] == kind], bare, ends, columns))
        others = [row for row in rows if row["kind"] == "other"]
        if others:
            lines = ["| setting | scenes / easy-VQA | bytes |", "|---|---|---|"]
            lines += [f"| `{row['spec']}` | {_right(row[ends])} | {row[ends]['bytes_ratio']:.0%} |" for row in others]
            parts.append("\n".join(lines))
    counts = record.config["counts"]
    note = (
        "Exact match in per cent on scenes / easy-VQA. Columns of shares: what is kept of the prompt's entries; behind "
        "a number stands what is kept of the bytes where that is another share. Columns of bits: of entries that "
        "matter where a method tells them apart (the arguments are in the record); in brackets the bytes. In italics "
        "the baselines; where they evict entries of one modality alone, the share is of that modality. Every token of "
        f"an answer comes out of the compressed cache. N = {counts['scenes']['all']} questions about held-out scenes, "
        f"{counts['easy_vqa']['all']} easy-VQA test questions. {record.model}, {record.config['dtype']}, "
        f"{record.device}, {record.date}."
    )
    return "\n\n".join([*parts, note])


def _by_column(rows: list[Row], bare: Row, ends: str, columns: tuple[float, ...]) -> str:
    shares = columns is SHARES
    titles = [f"{column:.0%}" if shares else f"{column:g} bits" for column in columns]
    lines = [f"| method | {' | '.join(titles)} |", "|" + "---|" * (1 + len(columns))]
    lines.append("| full cache | " + " | ".join([_right(bare[ends])] * len(columns)) + " |")
    cells = {(row["label"], row["column"]): row[ends] for row in rows}
    for label in sorted(dict.fromkeys(row["label"] for row in rows), key=lambda name: (_is_baseline(name), name)):
        shown = [_cell(cells.get((label, column)), column if shares else None) for column in columns]
        lines.append(f"| {f'*{label}*' if _is_baseline(label) else f'`{label}`'} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _is_baseline(label: str) -> bool:
    return label.startswith("random_evict")


def _cell(found: Row | None, share: float | None) -> str:
    if found is None:
        return "-"
    ratio = found["bytes_ratio"]
    if share is not None and abs(ratio - share) <= _SAID:
        return _right(found)
    return f"{_right(found)} ({ratio:.0%})"


def _right(found: Row) -> str:
    return " / ".join(f"{100 * found['accuracy'][part]['all']:.1f}" for part in ("scenes", "easy_vqa"))
