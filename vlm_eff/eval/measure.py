"""Timing two ways of doing the same thing, side by side in one process.

Only the median of ratios of pairs is worth reporting on a machine that does other things as well: the ratio of two
means that were measured one after the other swung by a factor of three where this one stayed within five per cent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlm_eff.core.errors import ConfigError, explain

_RESAMPLES = 2000


@dataclass(frozen=True)
class PairedTimes:
    """Two arms timed in pairs.

    ratio:     median over pairs of first / second; below 1 the first is faster
    low, high: 95 % interval of the ratio, by bootstrap over the pairs
    first_ms, second_ms: median time of each arm, milliseconds; pairs: N
    """

    ratio: float
    low: float
    high: float
    first_ms: float
    second_ms: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_times(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int = 20,
    warmup: int = 5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimes:
    """Time `first` against `second`: the order inside each pair is drawn at random.

    Both must return only when their work is done (on a GPU: after a synchronise).
    pairs:  timed pairs; warmup: runs of each arm that are thrown away
    clock:  seconds, monotonic

    Raises:
        ConfigError: fewer than three pairs, or a negative warm-up.
    """

    def timed(arm: Callable[[], object]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            started = clock()
            arm()
            return {"time": clock() - started}

        return run

    return paired_runs(timed(first), timed(second), pairs=pairs, warmup=warmup, seed=seed)["time"]


def paired_runs(
    first: Callable[[], Mapping[str, float]],
    second: Callable[[], Mapping[str, float]],
    *,
    pairs: int = 20,
    warmup: int = 5,
    seed: int = 0,
) -> dict[str, PairedTimes]:
    """Compare what `first` and `second` measure of themselves, such as several times of one run, in seconds.

    As `paired_times`; quantities are those that both name in their first timed run.

    Raises:
        ConfigError: fewer than three pairs, or a negative warm-up.
    """
    if pairs < 3 or warmup < 0:
        raise ConfigError(
            explain(f"pairs={pairs}, warmup={warmup}", "3 pairs or more, warmup of at least 0", "Give more pairs")
        )
    for _ in range(warmup):
        first()
        second()
    rng = np.random.default_rng(seed)
    runs: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    for _ in range(pairs):
        made: list[Mapping[str, float]] = [{}, {}]
        for arm in rng.permutation(2):
            made[arm] = (first, second)[arm]()
        runs.append((made[0], made[1]))
    names = [name for name in runs[0][0] if name in runs[0][1]]
    return {name: _paired(np.array([[a[name], b[name]] for a, b in runs]), rng) for name in names}


def _paired(times: np.ndarray[Any, Any], rng: np.random.Generator) -> PairedTimes:
    """Median and interval of the ratios of [pairs, 2] times."""
    ratios = times[:, 0] / times[:, 1]
    resampled = np.median(rng.choice(ratios, size=(_RESAMPLES, len(times))), axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    first, second = np.median(times, axis=0) * 1e3
    return PairedTimes(float(np.median(ratios)), float(low), float(high), float(first), float(second), len(times))
