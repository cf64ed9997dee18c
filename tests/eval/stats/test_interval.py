"""Intervals and tests: against closed forms and scipy, and that they keep what they promise under clustering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from vlm_eff.core.errors import InputError
from vlm_eff.eval.stats import interval as interval_module
from vlm_eff.eval.stats import significance as significance_module
from vlm_eff.eval.stats.interval import Interval, cluster_codes, cluster_interval
from vlm_eff.eval.stats.significance import mcnemar, significance

BOTH = (-1.0, 1.0)


def drawn(seed: int, clusters: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Differences with mean 0 whose items are alike within a cluster; clusters have 1 to 8 items."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, clusters)
    codes = np.repeat(np.arange(clusters), sizes)
    own = rng.normal(size=clusters)[codes] + 0.5 * rng.normal(size=len(codes))
    return np.where(own < -0.6, -1.0, np.where(own > 0.6, 1.0, 0.0)), codes


def coverage(codes_of: Callable[[np.ndarray], np.ndarray], draws: int = 200) -> float:
    """Share of the intervals that hold the true mean, 0."""
    found = []
    for seed in range(draws):
        values, codes = drawn(seed)
        made = cluster_interval(values, codes_of(codes), limits=BOTH, seed=seed)
        assert made.low is not None and made.high is not None
        found.append(made.low <= 0 <= made.high)
    return float(np.mean(found))


def test_an_interval_holds_the_truth_in_95_of_100_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval_module, "_RESAMPLES", 400)
    # two standard errors of 200 draws
    assert 0.92 <= coverage(lambda codes: codes) <= 0.98
    # items taken for independent: the intervals are too narrow by far
    assert coverage(lambda codes: np.arange(len(codes))) < 0.85


def test_few_clusters_are_given_wider_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    values, codes = drawn(0, clusters=6)
    made = cluster_interval(values, codes, limits=BOTH)
    monkeypatch.setattr(interval_module, "_levels", lambda clusters: (0.025, 0.975))
    plain = cluster_interval(values, codes, limits=BOTH)
    assert made.low < plain.low < plain.high < made.high  # type: ignore[operator]


def test_independent_items_agree_with_scipy() -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=400)
    made = cluster_interval(values, np.arange(400), limits=BOTH)
    low, high = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert made.value == pytest.approx(values.mean())
    assert (made.low, made.high) == pytest.approx((low, high), abs=0.004)


def test_a_cluster_is_drawn_as_a_whole() -> None:
    """Two clusters give three means, and which of them comes how often is known: 1/4, 1/2, 1/4."""
    values, codes = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0, 0, 0, 1])
    means = interval_module._resampled_means(values, codes, 2, np.random.default_rng(0))
    found, counts = np.unique(means, return_counts=True)
    assert found.tolist() == [0.0, 0.25, 1.0]
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_one_seed_gives_one_interval_and_order_does_not_matter() -> None:
    values, codes = drawn(1)
    first = cluster_interval(values, codes, limits=BOTH, seed=5)
    order = np.random.default_rng(0).permutation(len(values))
    assert first == cluster_interval(values, codes, limits=BOTH, seed=5)
    again = cluster_interval(values[order], codes[order], limits=BOTH, seed=5)
    assert (again.low, again.high) == (first.low, first.high)
    assert first != cluster_interval(values, codes, limits=BOTH, seed=6)


@pytest.mark.parametrize(
    ("value", "limits", "low", "high"),
    [(0.0, BOTH, -1, 1), (1.0, (0.0, 1.0), -1, 0), (0.0, (0.0, 1.0), 0, 1), (1.0, BOTH, -2, 0)],
)
def test_equal_items_leave_a_doubt(value: float, limits: tuple[float, float], low: float, high: float) -> None:
    made = cluster_interval(np.full(20, value), np.arange(20), limits=limits)
    # 20 of 20: Clopper and Pearson's bound on what was not seen
    unseen = stats.binomtest(0, 20).proportion_ci(0.95).high
    assert (made.low, made.high) == pytest.approx((value + low * unseen, value + high * unseen))


def test_one_cluster_has_no_interval_and_none_is_refused() -> None:
    assert cluster_interval(np.array([0.0, 1.0]), np.zeros(2, np.int64), limits=BOTH) == Interval(0.5, None, None)
    with pytest.raises(InputError, match="no items"):
        cluster_interval(np.array([]), np.array([], np.int64), limits=BOTH)


def test_items_without_a_cluster_are_their_own() -> None:
    codes = cluster_codes(["a", "", "b", "a", "", "1"])
    assert len(set(codes.tolist())) == 5 and codes[0] == codes[3] and codes.min() == 0 and codes.max() == 4


@pytest.mark.parametrize(("worse", "better", "p"), [(5, 15, 0.041389), (0, 6, 0.03125), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar(worse: int, better: int, p: float) -> None:
    """Two-sided binomial tails, worked out by hand: 2 * sum C(20, k) / 2^20 for k <= 5."""
    before = np.array([1.0] * worse + [0.0] * better + [1.0] * 9 + [0.0] * 4)
    after = np.array([0.0] * worse + [1.0] * better + [1.0] * 9 + [0.0] * 4)
    assert mcnemar(before, after) == pytest.approx(p, abs=1e-5)
    made = significance(before, after, np.arange(len(before)))
    assert made.test == "McNemar, exact" and made.p == mcnemar(before, after)


def test_fractions_are_tested_by_signs() -> None:
    """Five differences of one sign: 2 of the 32 sign patterns are as far from 0."""
    before, after = np.zeros(9), np.array([0.3, 0.6, 0.9, 1.0, 0.5, 0, 0, 0, 0])
    made = significance(before, after, np.arange(9))
    assert made.test == "sign flips" and made.p == pytest.approx(2 / 32)
    assert significance(before, before, np.arange(9)).p == significance(before, np.eye(9)[0] / 2, np.arange(9)).p == 1.0


@pytest.mark.parametrize("count", [9, 40])
def test_signs_agree_with_scipy(count: int) -> None:
    """All patterns of few clusters, drawn ones of many."""
    after = np.random.default_rng(count).normal(0.3, 1, count)
    made = significance(np.zeros(count), after, np.arange(count)).p
    expected = stats.permutation_test((after,), np.sum, permutation_type="samples", n_resamples=2000, rng=0).pvalue
    assert made == pytest.approx(expected, abs=1e-9 if count < 12 else 0.04) and 0.01 < made < 0.99


def test_p_keeps_its_promise_under_clustering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing differs 5 % of the draws fall below 0.05; McNemar's test, which ignores clusters, takes more."""
    monkeypatch.setattr(significance_module, "_FLIPS", 399)
    by_cluster, by_item = [], []
    for seed in range(120):
        values, codes = drawn(seed, clusters=30)
        before, after = (values < 0).astype(float), (values > 0).astype(float)
        made = significance(before, after, codes)
        assert made.test == "sign flips"
        by_cluster.append(made.p < 0.05)
        by_item.append(mcnemar(before, after) < 0.05)
    assert np.mean(by_cluster) < 0.11
    assert np.mean(by_item) > 0.2
