"""Baselines, to be printed beside every method."""

from __future__ import annotations

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.budget import CacheBudget
from vlm_eff.kvcache.one_modality import Modality, OfOneModality, OthersStay
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Noise


@method(room="kvcache", acts="between forward passes", paper="baseline")
def random_evict(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    sinks: int = 0,
    recent: int = 0,
    seed: int = 0,
    per_head: bool = True,
    only: Modality | None = None,
) -> Plugin:
    """Evict entries at random: what a method has to beat.

    Score    a draw that depends on the seed, the layer, the head and the place in the sequence alone, so that it is the
             same in any batch; the global random state is not touched
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Cost     none                                  Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        sinks: first tokens that stay in any case, inside the budget
        recent: last tokens that do
        seed: of the draw
        per_head: False evicts the same tokens in all heads of a layer
        only: "text" or "visual" evicts entries of that modality alone, and the budget is of its tokens; None of all

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, bytes of one modality.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    if only is not None:
        return _of_one_modality(budget, only, Noise(seed, per_head), (sinks, recent), per_head)
    return CachePolicy("random_evict", Noise(seed, per_head), budget, protect=Protect(sinks, recent), per_head=per_head)


def _of_one_modality(
    budget: CacheBudget, only: Modality, score: Noise, protect: tuple[int, int], per_head: bool
) -> CachePolicy:
    if budget.bytes is not None:
        raise ConfigError(
            explain(f"keep_bytes with only={only!r}", "keep_ratio or keep_count", "Say how many of its entries stay")
        )
    return CachePolicy(
        "random_evict",
        score,
        budget,
        protect=OthersStay(*protect, only=only),
        heads=OfOneModality(only, budget),
        per_head=per_head,
    )
