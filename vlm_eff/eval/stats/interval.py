"""How sure a mean over items is, when items of one picture or video are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_eff.core.errors import CapabilityError, InputError, explain

LEVEL = 0.95
_RESAMPLES = 5000
# counts drawn at a time: bounds the memory where every cluster is one of a kind
DRAWN = 4_000_000

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; `low` and `high` are None where a single cluster leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None


def distributions() -> Any:
    """Return `scipy.stats`.

    Raises:
        CapabilityError: scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError:
        raise CapabilityError(
            explain("intervals without scipy", "an installation that has it", 'Install it: pip install "vlm-eff[eval]"')
        ) from None
    return stats


def cluster_codes(clusters: Sequence[str]) -> NDArray[np.int64]:
    """A number for every item's cluster; an item without a cluster ("") is one of its own.  [n]"""
    known: dict[str, int] = {}
    codes = []
    for number, name in enumerate(clusters):
        codes.append(known.setdefault(name, len(known)) if name else -1 - number)
    return np.unique(np.array(codes, dtype=np.int64), return_inverse=True)[1].astype(np.int64)


def cluster_interval(
    values: Numbers, codes: NDArray[np.int64], *, limits: tuple[float, float], seed: int = 0
) -> Interval:
    """Return the mean of `values` [n] with its interval by bootstrap over whole clusters.

    codes:  [n] cluster of each item, as `cluster_codes` numbers them
    limits: smallest and largest value that an item can have

    Source: Field and Welsh 2007 (resampling of clusters); the quantiles are widened for few clusters as in Hesterberg
    2015, section 4.3 ("expanded percentile"), without which 20 clusters give about 92 % instead of 95 %.
    Where all items have one value a bootstrap knows of no doubt and would give an interval of width zero. There the
    interval says how many clusters could differ without one of them being among those asked (Clopper and Pearson).

    Raises:
        InputError: no items.
    """
    if len(values) == 0:
        raise InputError(explain("a mean over no items", "one item or more", "Check the runs and groups"))
    mean = float(values.mean())
    clusters = int(codes.max()) + 1
    if clusters < 2:
        return Interval(mean, None, None)
    if np.ptp(values) == 0:
        unseen = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
        return Interval(mean, mean - unseen * (mean - limits[0]), mean + unseen * (limits[1] - mean))
    means = _resampled_means(values, codes, clusters, np.random.default_rng(seed))
    low, high = np.quantile(means, _levels(clusters))
    return Interval(mean, float(low), float(high))


def _levels(clusters: int) -> tuple[float, float]:
    """The quantiles that a percentile interval of `clusters` draws has to be read at."""
    stats = distributions()
    t = stats.t.ppf((1 - LEVEL) / 2, clusters - 1)
    low = float(stats.norm.cdf(t * np.sqrt(clusters / (clusters - 1))))
    return low, 1 - low


def _resampled_means(values: Numbers, codes: NDArray[np.int64], clusters: int, rng: np.random.Generator) -> Numbers:
    """Means of the items of resampled clusters.  [resamples]

    Clusters with the same sum and size are interchangeable, so their number of draws is drawn and not each of them.
    """
    sums = np.bincount(codes, values, clusters).round(12)
    sizes = np.bincount(codes, minlength=clusters).astype(np.float64)
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    shares = counts / clusters
    chunk = max(1, DRAWN // len(kinds))
    parts = []
    for start in range(0, _RESAMPLES, chunk):
        drawn = rng.multinomial(clusters, shares, size=min(chunk, _RESAMPLES - start)) @ kinds
        parts.append(drawn[:, 0] / drawn[:, 1])
    return np.concatenate(parts)
