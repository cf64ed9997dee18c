"""PrefixKV: every layer keeps the same part of its attention."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Accumulated, Normalise
from vlm_eff.kvcache.spreads import CommonMass, mixed


@method(room="kvcache", acts="between forward passes", paper="arXiv:2412.03409")
def prefixkv(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    sinks: int = 1,
    normalise: Normalise = "visible",
    adaptive_share: float = 1.0,
) -> Plugin:
    """Keep the entries that all queries of the prompt look at most, as many in each layer as hold the same mass.

    Score    attention received from every query of the prompt, divided by the queries that could look, mean over all
             heads, which keep the same entries
    Budget   by layer: the best entries that together hold a fraction of the layer's attention, the same fraction for
             all layers     Treat  evict
    When     once after each prompt or turn     Peak  the full cache of the prompt
    Paper    PrefixKV, arXiv:2412.03409, section 3
    Differs  the fraction is found for the prompt at hand and meets the total exactly, where the official code searches
             it offline over ten samples and is content with a sum off by less than five; entries of the answer stay,
             where that code evicts one at each step. The official sum ("none") favours what came early so much that the
             end of the question goes: half of the entries then answer worse than half of them drawn at random
             (measured on the bundled model)
    Cost     attention of all rows a second time, in chunks
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, mean over layers, in (0, 1], rounded up; default 0.2. The
            official option names the fraction that goes
        keep_count: entries a key head instead, mean over layers
        keep_bytes: bytes of one row's keys and values instead
        sinks: first tokens that stay, inside the budget; code 1 to 4. The last token stays too
        normalise: "visible" divides by the queries that could look, "none" is the code, "length" also weighs each query
            by the entries that it shares itself out over
        adaptive_share: fraction [0, 1] of the budget that follows the mass, the rest is even; paper 1

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a share outside [0, 1].
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    spread = mixed(CommonMass(), adaptive_share)
    score, protect = Accumulated(normalise, steps=False), Protect(sinks, recent=1)
    return CachePolicy("prefixkv", score, budget, spread, protect=protect, per_head=False)
