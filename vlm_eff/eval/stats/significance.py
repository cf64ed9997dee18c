"""How likely a difference between two runs is where the change does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlm_eff.eval.stats.interval import DRAWN, Numbers, distributions

Test = Literal["McNemar, exact", "sign flips"]
_FLIPS = 9999


@dataclass(frozen=True)
class Significance:
    """A two-sided p value and the test it comes from."""

    p: float
    test: Test


def mcnemar(before: Numbers, after: Numbers) -> float:
    """Return the exact two-sided p value of McNemar's test for scores of 0 and 1 of independent items.  [n], [n]

    Source: McNemar 1947 in its exact form, a binomial test on the items that changed.
    """
    worse, better = int((after < before).sum()), int((after > before).sum())
    return float(distributions().binomtest(worse, worse + better).pvalue) if worse + better else 1.0


def significance(before: Numbers, after: Numbers, codes: NDArray[np.int64], *, seed: int = 0) -> Significance:
    """Test whether two runs differ in mean score.

    before, after: [n] scores of the same items; codes: [n] cluster of each item, as `cluster_codes` numbers them

    McNemar's test where scores are 0 or 1 and every item is a cluster of its own. Otherwise, because that test takes
    items for independent and knows no fractions, the two runs are swapped cluster by cluster: under chance every sign
    of a cluster's difference is as likely as the other (all of them where there are few, else 9,999 drawn).
    """
    clusters = int(codes.max()) + 1
    plain = clusters == len(codes) and not (set(np.unique(before)) | set(np.unique(after))) - {0.0, 1.0}
    if plain:
        return Significance(mcnemar(before, after), "McNemar, exact")
    sums = np.bincount(codes, after - before, clusters).round(12)
    return Significance(_sign_flips(sums[sums != 0], seed), "sign flips")


def _sign_flips(sums: Numbers, seed: int) -> float:
    """Share of sign patterns whose sum is as far from 0 as that of `sums` [n], which hold no 0."""
    count, far = len(sums), abs(sums.sum()) - 1e-9
    if 2**count <= _FLIPS:
        patterns = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((abs((2 * patterns - 1) @ sums) >= far).mean())
    rng, farther, chunk = np.random.default_rng(seed), 0, max(1, DRAWN // count)
    for start in range(0, _FLIPS, chunk):
        drawn = rng.integers(0, 2, (min(chunk, _FLIPS - start), count), dtype=np.int8)
        farther += int((abs((2 * drawn - 1) @ sums) >= far).sum())
    # the pattern that was found is one of the possible ones
    return (farther + 1) / (_FLIPS + 1)
