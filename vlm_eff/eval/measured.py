"""What the committed records say of one method: tables with its rows and what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlm_eff.eval import readme
from vlm_eff.eval.diffusion_tables import denoising_quality_table, denoising_time_table
from vlm_eff.eval.kernel_tables import patterns_table
from vlm_eff.eval.kv_tables import memory_table, quality_table
from vlm_eff.eval.record import Record, read_record
from vlm_eff.eval.reference_tables import perplexity_table, registers_table
from vlm_eff.eval.results import BASELINES, results_page
from vlm_eff.eval.timings import features_table, overhead_table, speed_table, towers_table

Row = dict[str, Any]
# what records call a row by
_LABELS = ("label", "plugin", "method", "row", "policy", "name")
# rivals in the record of registers stand in the records of methods at equal budgets anyway
_ONLY = {readme.REGISTERS_RECORD: ("victor",)}


@dataclass(frozen=True)
class Source:
    """A record and its table.

    beside: which rows of others a method's own rows (the second argument) are shown with
    """

    title: str
    path: Path
    show: Callable[[Record], str]
    beside: Callable[[Row, list[Row]], bool]


def _none(row: Row, own: list[Row]) -> bool:
    return False


def _at_equal_budgets(row: Row, own: list[Row]) -> bool:
    """The bare model, and baselines at the budgets of the method, or at what it came to with its defaults."""
    if row["method"] not in ("bare", *BASELINES):
        return False
    budget = row["n_eq_asked"]
    if row["method"] == "bare" or budget is not None:
        return row["method"] == "bare" or any(mine["n_eq_asked"] == budget for mine in own)
    came_to = {f"{mine['tasks']['scenes']['costs']['n_eq']:.0f}" for mine in own if mine["n_eq_asked"] is None}
    return row["label"].rpartition(" @ ")[2] in came_to


def _evicting_at_random(row: Row, own: list[Row]) -> bool:
    return _label(row) == "bare" or (_label(row) == "random_evict" and any(mine["kind"] == "evict" for mine in own))


def _random_policy(row: Row, own: list[Row]) -> bool:
    return _label(row).startswith(("bare", "random_evict"))


def _full_cache(row: Row, own: list[Row]) -> bool:
    return _label(row) == "DynamicCache"


def _fewer_steps(row: Row, own: list[Row]) -> bool:
    return row["kind"] in ("full", "fewer steps", "real")


def _at_random(row: Row, own: list[Row]) -> bool:
    return _label(row).split()[0] in ("bare", "random")


def _all(row: Row, own: list[Row]) -> bool:
    return True


SOURCES = (
    Source("Answers of the bundled model", readme.RECORD, results_page, _at_equal_budgets),
    Source("Answers of a model of real weights", readme.SMOL_RECORD, results_page, _at_equal_budgets),
    Source("Answers with learned registers", readme.REGISTERS_RECORD, registers_table, _all),
    Source("Answers under sparse prefill", readme.PATTERNS_RECORD, patterns_table, _at_random),
    Source("Features of a trained tower", readme.FEATURES_RECORD, features_table, _at_random),
    Source("Throughput of a tower", readme.TOWERS_RECORD, towers_table, _none),
    Source("Time of the prefill", readme.SPEED_RECORD, speed_table, _none),
    Source("What selecting costs", readme.OVERHEAD_RECORD, overhead_table, _none),
    Source("Answers out of the compressed cache", readme.KV_QUALITY_RECORD, quality_table, _evicting_at_random),
    Source("Answers out of the cache of real weights", readme.KV_SMOL_RECORD, quality_table, _evicting_at_random),
    Source("Perplexity of text", readme.PERPLEXITY_RECORD, perplexity_table, _random_policy),
    Source("Memory of the cache, time of a step", readme.KV_MEMORY_RECORD, memory_table, _full_cache),
    Source("Pictures of the bundled UNet", readme.UNET_RECORD, denoising_quality_table, _fewer_steps),
    Source("Pictures of the bundled transformer", readme.DIT_RECORD, denoising_quality_table, _fewer_steps),
    Source("Time of a run", readme.DENOISING_TIME_RECORD, denoising_time_table, _none),
)


def measured(name: str) -> list[tuple[str, str]]:
    """Title and Markdown of every record that has rows of the method; empty where nothing was measured."""
    found = []
    for source in SOURCES:
        record = narrowed(_record(readme.ROOT / source.path), name, source) if _speaks_of(source, name) else None
        if record is not None:
            found.append((source.title, source.show(record)))
    return found


def narrowed(record: Record, name: str, source: Source) -> Record | None:
    """The record with the method's own rows and those beside it; None without any of its own."""

    def left(rows: Iterable[Row]) -> list[Row]:
        own = [row for row in rows if is_of(row, name)]
        return [row for row in rows if row in own or source.beside(row, own)] if own else []

    result = record.result
    if isinstance(result, list):
        rows = left(result)
        return replace(record, result=rows) if rows else None
    if "rows" in result:
        rows = left(result["rows"])
        missing = {key: why for key, why in result.get("unreachable", {}).items() if name in methods_in(key)}
        return replace(record, result=result | {"rows": rows, "unreachable": missing}) if rows else None
    sections = {section: rows for section in result if (rows := left(result[section]))}
    return replace(record, result=sections) if sections else None


def is_of(row: Row, name: str) -> bool:
    """True for a row of the method itself, alone or together with others."""
    return row.get("kind") not in ("diffusers", "peer") and name in methods_in(_label(row))


def methods_in(label: str) -> set[str]:
    """Names of the methods in a label such as "forecast:evaluations=10 + cfg_cache:interval=2"."""
    return {re.split(r"[:, ]", part, maxsplit=1)[0] for part in label.split(" + ")}


def _label(row: Row) -> str:
    return str(next(row[key] for key in _LABELS if key in row))


def _speaks_of(source: Source, name: str) -> bool:
    return name in _ONLY.get(source.path, (name,)) and (readme.ROOT / source.path).is_file()


def _record(path: Path) -> Record:
    return _read(path, path.stat().st_mtime_ns)


@lru_cache
def _read(path: Path, changed: int) -> Record:
    """Each record is read once for all methods, and again when its file has changed."""
    return read_record(path)
