"""What one run says by itself: accuracy with its interval, answers that were none, and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.metrics import METRICS, STATUSES, Score, Scored, Status
from vlm_eff.eval.runs.folder import Run, Sample
from vlm_eff.eval.stats.baselines import is_bare, is_baseline, is_downsized
from vlm_eff.eval.stats.interval import Interval, Numbers, cluster_codes, cluster_interval

SCORES = (0.0, 1.0)
COSTS = ("visual_tokens", "n_eq", "n_eq_asked", "flops_ratio", "flops", "kv_bytes_ratio", "kv_bytes")
# of what a metric says of all items, these are told by the summary itself
_TOLD = {"accuracy", "n", "unparsed_rate", "empty_rate", "error_rate"}


@dataclass(frozen=True)
class Summary:
    """One run.

    kind:       "bare", "baseline" or "method"
    accuracy:   mean score of the items, 0 to 1, with its interval over clusters
    by_metric:  what else the task's metric makes of all items, such as pairs that are right together
    rates:      share of items by status: ok, unparsed, empty, error
    new_tokens: mean length of the answers
    costs:      by name, mean over the items that have it; None where none has. `flops_ratio`, `kv_bytes_ratio`: with
                the plugin / bare, decoder, prompt. `n_eq`: visual tokens averaged over layers
    per_layer:  visual tokens at the input of each decoder layer, mean over items; empty where no item says
    """

    label: str
    folder: str
    kind: str
    items: int
    clusters: int
    accuracy: Interval
    by_metric: dict[str, float]
    rates: dict[str, float]
    new_tokens: float
    costs: dict[str, float | None]
    per_layer: tuple[float, ...] = field(default=())


def summarise(run: Run, label: str, *, seed: int = 0) -> Summary:
    """Summarise a finished run."""
    samples = in_order(run)
    values, codes = scores(samples), codes_of(samples)
    counts = Counter(sample.status for sample in samples)
    kind = "bare" if is_bare(run.header) else "baseline" if is_baseline(run.header) else "method"
    costs = {name: _mean(samples, name) for name in COSTS}
    if kind == "bare":
        # the runner has nothing to compare the bare model with
        costs |= {"n_eq": costs["visual_tokens"], "flops_ratio": 1.0, "kv_bytes_ratio": 1.0}
    elif is_downsized(run.header):
        # its lines are of a bare model, whose ratios are those to itself
        costs |= {"n_eq": costs["visual_tokens"], "flops_ratio": None, "kv_bytes_ratio": None}
    return Summary(
        label=label,
        folder=str(run.folder),
        kind=kind,
        items=len(samples),
        clusters=int(codes.max()) + 1,
        accuracy=cluster_interval(values, codes, limits=SCORES, seed=seed),
        by_metric=_by_metric(run, samples),
        rates={status: counts[status] / len(samples) for status in STATUSES},
        new_tokens=float(np.mean([sample.new_tokens for sample in samples])),
        costs=costs,
        per_layer=_per_layer(samples),
    )


def in_order(run: Run) -> list[Sample]:
    """The samples by item id: the order in which they were asked is not the same in every run."""
    return [run.samples[name] for name in sorted(run.samples)]


def scores(samples: Sequence[Sample]) -> Numbers:
    """Scores of samples.  [n]"""
    return np.array([sample.score for sample in samples], dtype=np.float64)


def scored(samples: Sequence[Sample]) -> list[Scored]:
    """Samples as a metric sums them up."""
    return [
        Scored(one.id, Score(one.score, one.parsed, cast(Status, one.status)), one.gold, one.cluster, one.groups)
        for one in samples
    ]


def codes_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Clusters of samples as numbers.  [n]"""
    return cluster_codes([sample.cluster for sample in samples])


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run that no other one has: its own, with as much of its folder as is needed.

    Raises:
        ConfigError: a folder that is given twice.
    """
    folders = [run.folder.resolve() for run in runs]
    twice = [str(run.folder) for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]
    if twice:
        raise ConfigError(explain(f"{twice[0]} twice", "each run once", "Leave one of them out"))
    named = [run.header.label for run in runs]
    for tail in (lambda run: run.folder.name, lambda run: str(run.folder.resolve())):
        repeated = {label for label in named if named.count(label) > 1}
        named = [
            f"{run.header.label} ({tail(run)})" if label in repeated else label
            for run, label in zip(runs, named, strict=True)
        ]
    return named


def _by_metric(run: Run, samples: Sequence[Sample]) -> dict[str, float]:
    """Nothing for a metric of somebody else, whose scores were imported."""
    name = run.header.task["metric"]
    if name not in METRICS:
        return {}
    found = METRICS.get(name).aggregate(scored(samples))
    return {key: float(value) for key, value in found.items() if key not in _TOLD and isinstance(value, int | float)}


def _mean(samples: Sequence[Sample], name: str) -> float | None:
    found = [sample.costs[name] for sample in samples if sample.costs.get(name) is not None]
    return float(np.mean(found)) if found else None


def _per_layer(samples: Sequence[Sample]) -> tuple[float, ...]:
    found = [sample.costs["visual_per_layer"] for sample in samples if sample.costs.get("visual_per_layer")]
    return tuple(float(count) for count in np.mean(found, axis=0)) if found else ()
