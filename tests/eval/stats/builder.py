"""Runs on disk as a runner would leave them, with scores, answers and costs that a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_eff.eval.runs.folder import SAMPLES, Header, Run, Sample, SampleWriter, read_run, write_header

TASK = {"name": "scenes", "version": "1", "metric": "exact", "max_new_tokens": 16, "sampling": None}
SETTINGS = {"batch_size": 4, "seed": 0, "limit": None, "dtype": "float32", "attention": "sdpa", "baseline": None}
# as the runner writes them without a plugin
BARE_COSTS: dict[str, Any] = {
    "visual_tokens": 64.0,
    "n_eq": 64.0,
    "flops_ratio": 1.0,
    "kv_bytes_ratio": 1.0,
    "visual_per_layer": [64.0, 64.0],
}


def sample(number: int, score: float, **changed: Any) -> Sample:
    """Item `number`, answered "yes" where it is right and "no" where it is wrong."""
    values: dict[str, Any] = {
        "id": f"q{number}",
        "prompt": f"is it {number}?",
        "media": [{"picture": f"digest{number}", "size": [64, 48]}],
        "gold": {"answer": "yes"},
        "answer": "yes" if score else "no",
        "score": score,
        "parsed": "yes" if score else "no",
        "status": "ok",
        "new_tokens": 1,
        "groups": {"family": "even" if number % 2 == 0 else "odd"},
        "costs": dict(BARE_COSTS),
    }
    return Sample(**(values | changed))


def samples(scores: Sequence[float], clusters: Sequence[str] | None = None, **changed: Any) -> list[Sample]:
    """One sample a score."""
    named = clusters or [""] * len(scores)
    return [sample(number, score, cluster=named[number], **changed) for number, score in enumerate(scores)]


def header(items: int, spec: str | None = None, **changed: Any) -> Header:
    """The header of a run of the bare model, or of one with a plugin."""
    plugins = [] if spec is None else [{"part": "TokenReducer", "method": spec.split(":")[0]}]
    made = Header(
        task=TASK | {"items": items},
        model="tiny",
        plugins=plugins,
        specs=[] if spec is None else [spec],
        settings=dict(SETTINGS),
        device="2-core CPU",
        packages={"torch": "2.15.0", "transformers": "5.23.0"},
        date="2026-01-01",
    )
    return replace(made, **changed)


def costs(n_eq: float, kv: float | None = None) -> dict[str, Any]:
    """What a line says of an item that was asked with a plugin."""
    ratio = n_eq / 64 if kv is None else kv
    return {
        "visual_tokens": 64.0,
        "n_eq": n_eq,
        "flops_ratio": n_eq / 64,
        "kv_bytes_ratio": ratio,
        "kv_bytes": 8000 * ratio,
        "visual_per_layer": [64, 2 * n_eq - 64],
    }


def write(folder: Path, lines: Sequence[Sample], head: Header | None = None) -> Path:
    """Write a run and return its folder."""
    write_header(folder, head or header(len(lines)))
    with SampleWriter(folder / SAMPLES) as writer:
        writer.add(lines)
    return folder


def run(folder: Path, lines: Sequence[Sample], head: Header | None = None) -> Run:
    """Write a run and read it back."""
    return read_run(write(folder, lines, head))


def downsized(items: int, **changed: Any) -> Header:
    """The header of the baseline that shows smaller pictures."""
    return header(items, settings=SETTINGS | {"baseline": "downsize", "baseline_n_eq": 32}, **changed)


def family(folder: Path, before: Sequence[float], after: Sequence[float]) -> list[Path]:
    """A bare run, a method, a baseline at its cost and one with smaller pictures."""
    n = len(before)
    shown = [{"picture": "small", "size": [32, 24]}]
    fewer = BARE_COSTS | {"visual_tokens": 32.0, "n_eq": 32.0}
    smaller = samples([1.0 - score for score in before], media=shown, costs=fewer)
    return [
        write(folder / "bare", samples(before)),
        write(folder / "fastv", samples(after, costs=costs(40.0)), header(n, "fastv:keep_ratio=0.5")),
        write(folder / "grid", samples(before, costs=costs(40.3)), header(n, "uniform_grid:keep_ratio=0.6")),
        write(folder / "small", smaller, downsized(n)),
    ]
