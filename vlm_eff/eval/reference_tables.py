"""What the reference models reach, as Markdown: answers, registers trained for one of them, perplexity of the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_eff.eval.record import Record

_FAMILIES = ("shape", "colour", "size", "count", "yes_no", "relation", "read_word", "read_digit", "locate")
_TASKS = (("easy_vqa", "easy-VQA"), ("scenes", "scenes"))


def answers_table(path: Path) -> str:
    """The evaluation in a `training_record.json`: right answers by family, beside the commonest training answer."""
    evaluation = json.loads(path.read_text(encoding="utf-8"))["evaluation"]
    lines = ["| questions | right | always the commonest training answer | N |", "|---|---|---|---|"]
    for key, task in _TASKS:
        found = evaluation[key]
        for family in sorted(found["count"], key=lambda name: (name != "all", -found["accuracy"][name], name)):
            cells = [f"{task}, {family.removeprefix('easy_vqa_')}"]
            cells += [f"{found[part][family]:.1%}" for part in ("accuracy", "majority_baseline")]
            lines.append(f"| {' | '.join(cells)} | {found['count'][family]} |")
    asked = "; ".join(f"{task}: {evaluation[key]['split']}" for key, task in _TASKS)
    note = f"{evaluation['method']}, {evaluation['dtype']}, {evaluation['device']}. {asked}."
    return "\n".join([*lines, "", note[0].upper() + note[1:]])


def registers_table(record: Record) -> str:
    """The record of `benchmarks/registers.py`: right answers by family at equal n_eq."""
    lines = [
        f"| n_eq | | all | {' | '.join(_FAMILIES)} | easy-VQA |",
        "|" + "---|" * (len(_FAMILIES) + 4),
        *(_registers_line(row) for row in record.result["rows"]),
    ]
    note = (
        f"Per cent right on held-out scenes 0 to {record.result['scenes'] - 1} ({record.config['counts']['all']} "
        f"questions) and on the first {record.result['easy_vqa']} of easy-VQA's test questions. "
        f'"Before training" is the pooled start. {record.model}, {record.config["dtype"]}, {record.device}, '
        f"{record.date}."
    )
    return "\n".join([*lines, "", note])


def _registers_line(row: Mapping[str, Any]) -> str:
    n_eq = "all" if row["n_eq"] is None else f"{row['n_eq']:g}"
    scenes = " | ".join(f"{100 * row['scenes'][family]:.0f}" for family in ("all", *_FAMILIES))
    return f"| {n_eq} | {row['name']} | {scenes} | {100 * row['easy_vqa']['all']:.1f} |"


def perplexity_table(record: Record) -> str:
    """The record of `benchmarks/kv_perplexity.py`: what compressing the prefix costs, in nats a token."""
    rows = [row for row in record.result if "bytes_ratio" in row]
    lines = ["| cache of the prefix | bytes | perplexity | nats a token more than bare |", "|---|---|---|---|"]
    for row in rows:
        more = f"{row['extra_nats']:+.3f} ± {row['standard_error']:.3f}" if row["policy"] != "bare" else ""
        lines.append(f"| `{row['policy']}` | {row['bytes_ratio']:.1%} | {row['perplexity']:.2f} | {more} |")
    config = record.config
    note = (
        f"{config['windows']} windows of {config['prefix']} tokens that are prefilled and compressed, and "
        f"{config['scored']} tokens each that are fed as they stand (N = {record.n} predictions). Errors are standard "
        f"errors over the windows; bytes are those of the prefix, against a float32 cache. {record.device}, "
        f"{record.date}."
    )
    return "\n".join([*lines, "", note])
