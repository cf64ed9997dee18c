"""The records of the KV cache as Markdown: quality of answers, and memory and time."""

from __future__ import annotations

from statistics import median
from typing import Any

from vlm_eff.eval.kv_settings import BITS, SHARES
from vlm_eff.eval.record import Record

Row = dict[str, Any]
# what is kept beyond the share that was asked by more than this is said beside the number
_SAID = 0.02
# what the README shows of shares and bits
_SHORT = (("evict", 0.5), ("evict", 0.2), ("bits", 4), ("bits", 2))
PARTS = ("scenes", "easy_vqa")
_BEST = 6
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
            chosen = [row for row in rows if row["kind"] == kind]
            there = tuple(column for column in columns if any(row["column"] == column for row in chosen))
            if chosen:
                parts.append(_by_column(chosen, bare, ends, there, shares=kind == "evict"))
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
    return "\n\n".join([*parts, " ".join([note, *_margins_note(record)])])


def cache_summary(record: Record) -> str:
    """The record of `benchmarks/kv_quality.py` in short: scenes at two shares and at two widths, asked in both ways."""
    columns = [(kind, column, ends) for kind, column in _SHORT for ends in _WAYS]
    cells = {(row["label"], row["kind"], row["column"], end): row[end] for row in record.result for end in _WAYS}
    labels = _shortlist(record)
    titles = [f"{column:.0%}" if kind == "evict" else f"{column:g} bits" for kind, column in _SHORT]
    lines = ["| method | " + " | ".join(f"{title}, {ends}" for title in titles for ends in _WAYS) + " |"]
    lines.append("|" + "---|" * (1 + len(columns)))
    bare = [_scenes(cells[("bare", "bare", 0, ends)]) for _, _, ends in columns]
    lines.append(f"| full cache | {' | '.join(bare)} |")
    for label in labels:
        shown = [_scenes(cells.get((label, kind, column, ends))) for kind, column, ends in columns]
        lines.append(f"| {f'*{label}*' if _is_baseline(label) else f'`{label}`'} | {' | '.join(shown)} |")
    count = record.config["counts"]["scenes"]["all"]
    left = len({row["label"] for row in record.result if row["kind"] == "evict"} - set(labels))
    note = (
        f"The {_BEST} evicting methods with the best mean ({left} more in the guide). "
        "Exact match in per cent on held-out scenes, with so much of the prompt's entries or so many bits; the cache "
        f'is compressed behind the question ("seen") or behind the picture ("unseen"). N = {count} questions. '
        f"{record.model}, {record.config['dtype']}, {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def cache_sentence(record: Record) -> str:
    """A record with intervals in short: scenes at a fifth of the entries and with two bits, best and random."""
    counts, parts = record.config["counts"], []
    for ends, when in (("seen", "behind the question"), ("unseen", "behind the picture")):
        few = {row["label"]: row[ends] for row in record.result if row["column"] == 0.2 and row.get(ends)}
        chosen = [label for label in few if not _is_baseline(label)]
        best = max(chosen, key=lambda label: few[label]["accuracy"]["scenes"]["all"])
        parts.append(
            f"compressed {when}, `{best}` at 20 % of the entries answers {_scenes(few[best])} % (visual entries at "
            f"random, text kept: {_scenes(few['random_evict, visual entries only'])} %)"
        )
    bits = {row["spec"]: row for row in record.result if row["kind"] == "bits" and row["column"] == 2}
    rounded = next(row for spec, row in bits.items() if spec.startswith("kivi"))
    parts.append(
        f"`{rounded['spec']}` {_scenes(rounded['seen'])} % and {_scenes(rounded['unseen'])} % at "
        f"{rounded['seen']['bytes_ratio']:.0%} of the bytes"
    )
    bare = next(row for row in record.result if row["kind"] == "bare")
    widths = _half_widths(record, "scenes")
    return (
        f"The model of real weights (`{record.model}`) answers {_scenes(bare['seen'])} % of {counts['scenes']['all']} "
        f"questions about scenes with a full cache; {'; '.join(parts)}. Differences below about {median(widths):.0f} "
        f"points are noise ([all](docs/kvcache.md#quality-on-real-weights); {record.config['dtype']}, {record.device}, "
        f"{record.date})."
    )


def _shortlist(record: Record) -> list[str]:
    """Whatever stores in fewer bits, the evicting methods with the best mean, and random eviction."""
    short = [row for row in record.result if (row["kind"], row["column"]) in _SHORT]
    found: dict[str, list[float]] = {}
    for row in short:
        scores = [row[ends]["accuracy"]["scenes"]["all"] for ends in _WAYS]
        found.setdefault(row["label"], []).append(sum(scores) / len(scores))
    mean = {label: sum(scores) / len(scores) for label, scores in found.items()}
    kinds = {row["label"]: row["kind"] for row in short}
    evicting = [label for label in mean if kinds[label] == "evict" and not _is_baseline(label)]
    best = sorted(evicting, key=lambda label: -mean[label])[:_BEST]
    packing = sorted(label for label in mean if kinds[label] == "bits")
    return [*best, *packing, *sorted(label for label in mean if _is_baseline(label))]


def _scenes(found: Row | None) -> str:
    return "-" if found is None else f"{100 * found['accuracy']['scenes']['all']:.1f}"


def memory_table(record: Record) -> str:
    """The record of `benchmarks/kv_memory.py`: bytes held, what the process grew by, and the time of a decode step."""
    lines = [
        "| cache | type | held | of full | reported | closed form | resident | decode step | ideal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    missing = []
    for row in record.result:
        if "not_measured" in row:
            missing.append(f"{row['row']} ({row['dtype']}): {row['not_measured']}")
            continue
        low, high = row["decode_time_interval"]
        cells = [f"`{row['row']}`", row["dtype"], _megabytes(row["live_bytes"]), f"{row['live_ratio']:.1%}"]
        cells += [_off(row["reported_bytes"], row["live_bytes"]), _off(row["closed_form_bytes"], row["live_bytes"])]
        cells += [_megabytes(row["resident_bytes"]), f"{row['decode_time_ratio']:.2f} [{low:.2f}, {high:.2f}]"]
        cells.append(f"{row['ideal_time_ratio']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    config = record.config
    note = (
        "Held: storages that can be reached from the cache, each once; of full: against keys and values of all tokens; "
        "reported by the handle, and by arithmetic: difference to what is held. Resident: what the process grew by "
        "from before the prompt, one process a row. Decode step: with this cache / with a full DynamicCache, median of "
        f"{record.n} interleaved pairs [95 %], CPU, ratios only; ideal: weights and cache read / weights and full "
        f"cache read. Model: {record.model}, {config['visual_tokens']} visual and {config['text_tokens']} text tokens, "
        f"batch {config['batch']}, {config['threads']} thread(s), {record.device}, {record.date}."
    )
    unmeasured = [f"Not measured: {'; '.join(missing)}."] if missing else []
    return "\n".join([*lines, "", note, *unmeasured])


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _off(count: float | None, live: float) -> str:
    return "-" if count is None else f"{count / live - 1:+.2%}"


def _by_column(rows: list[Row], bare: Row, ends: str, columns: tuple[float, ...], *, shares: bool) -> str:
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
    return " / ".join(_bold_above_random(found, part) for part in PARTS)


def _bold_above_random(found: Row, part: str) -> str:
    shown = f"{100 * found['accuracy'][part]['all']:.1f}"
    low = found.get("more_than", {}).get("random", {}).get(part, (0, 0, 0))[1]
    return f"**{shown}**" if low is not None and low > 0 else shown


def _margins_note(record: Record) -> list[str]:
    """What chance reaches and how sure the numbers are, where a record tells."""
    note = []
    if "majority" in record.config:
        chance = " / ".join(f"{100 * record.config['majority'][part]:.1f}" for part in PARTS)
        note.append(f"The commonest training answer of each family reaches {chance}.")
    margins = {part: found for part in PARTS if (found := _half_widths(record, part))}
    if margins:
        pictures = " / ".join(f"{record.config['pictures'][part]}" for part in margins)
        shown = " / ".join(f"{median(found):.1f} (at most {max(found):.1f})" for found in margins.values())
        note.append(
            "In bold: more right answers than with such a share of the visual entries drawn at random, text kept, "
            "beyond the 95 % interval of the difference over pictures, each cell by itself. Half of the width of such "
            f"an interval against the full cache is {shown} points on median: the questions are about {pictures} "
            "pictures."
        )
    return note


def _half_widths(record: Record, part: str) -> list[float]:
    """Of the intervals of all rows against the full cache, in points."""
    found = [row[end]["more_than"]["full"][part] for row in record.result for end in _WAYS if _has_margins(row, end)]
    return [50 * (high - low) for _, low, high in found if low is not None]


def _has_margins(row: Row, ends: str) -> bool:
    return "full" in (row.get(ends) or {}).get("more_than", {})
