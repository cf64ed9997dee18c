"""Precision by saliency: a threshold, or a knapsack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_several, check_whole
from vlm_eff.kvcache.allot import BySaliency
from vlm_eff.kvcache.formats import Axes, CacheFormats, Tier, in_bits


@method(room="kvcache", acts="between forward passes", paper="the survey of efficient VLMs, equation 37")
def saliency_precision(
    levels: Sequence[int] = (0, 2, 4, 8),
    bits_budget: float | None = None,
    tau: float | None = None,
    high_share: float | None = None,
    window: int = 32,
    group: int | None = 32,
    every: int | None = None,
    per_head: bool = False,
    text_axis: Axes = ("channel", "token"),
    visual_axis: Axes | None = None,
    outliers: float = 0.0,
) -> Plugin:
    """Give each entry its bits by how much attention it gets: the best use of a budget, or two levels by a threshold.

    Score    attention from the last `window` rows a look, summed over rows and query heads, mean over key heads
    Who      `bits_budget` minimises the sum of score * 2^(-2 bits) under a budget, the entries of a row against each
             other; `tau` and `high_share` give the highest level above a threshold and the lowest below
    Form     as in `kivi`; level 0 evicts, level 16 leaves entries as they are
    When     after each prompt or turn, everything; then every `every` generated tokens, if asked for
    Paper    the survey of efficient VLMs, equation 37, which names VL-Cache for it; VL-Cache evicts. The knapsack is
             solved on the convex hull of levels, greedily, which is optimal up to the last step that fits
    Differs  the survey leaves saliency and distortion open
    Cost     `window` attention rows a layer, a sort of its entries     Saves  KV cache; realised, as in `kivi`

    Args:
        levels: ascending widths among 0, 1, 2, 4, 8 and 16.
        bits_budget: most bits an entry's number gets on average over a row; default 3 when nothing else is given.
            Scales and places come on top, see `kivi`.
        tau: threshold, in means of the row's scores.
        high_share: fraction [0, 1] of the entries that get the highest level.
        window: rows that look.
        group: numbers of a group; None groups all entries that are packed together, or a whole head.
        every: generated tokens that are packed at once; None leaves what is generated exact.
        per_head: True lets each key head choose for itself; heads with fewer entries of a level are padded.
        text_axis: "channel" or "token" for keys and for values.
        visual_axis: the same for visual entries.
        outliers: fraction of each group that is exact.

    Raises:
        ConfigError: more than one rule, widths that do not exist or do not ascend, a budget below the lowest level.
    """
    check_whole("window", window)
    given = {"mean": bits_budget, "tau": tau, "share": high_share}
    chosen = [(rule, value) for rule, value in given.items() if value is not None]
    if len(chosen) > 1:
        got = f"bits_budget={bits_budget!r}, tau={tau!r} and high_share={high_share!r}"
        raise ConfigError(explain(got, "one of the three", "Give a budget, a threshold or a share"))
    rule: Literal["mean", "tau", "share"]
    widths = check_several("levels", levels, "ascending widths among 0, 1, 2, 4, 8 and 16")
    rule, value = chosen[0] if chosen else ("mean", 3.0)  # type: ignore[assignment]
    allot = BySaliency(CacheRows("last", window, steps=every is not None), widths, rule, value, per_head)
    tiers = tuple(
        Tier(in_bits(bits, text_axis, group, outliers), in_bits(bits, visual_axis or text_axis, group, outliers))
        for bits in widths
    )
    return CacheFormats("saliency_precision", tiers, allot, every=every)
