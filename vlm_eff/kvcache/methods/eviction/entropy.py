"""Entropy over the modalities of queries: entries that text and pictures both use stay."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.modality import ModalityEntropy
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect


@method(room="kvcache", acts="between forward passes", paper="no single paper")
def entropy(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent: int = 32,
) -> Plugin:
    """Keep the entries that queries of all modalities use alike, ranked within each modality.

    Score    entropy of the shares that text, image and video queries have in the entry's attention, each modality by
             the mean over its queries; then the rank among the entries of the same modality
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    no single paper: the entropy policy that surveys of VLM caches write down, made precise
    Differs  a key has one modality, so the surveys' joint entropy is that over the modalities of queries. Text behind
             the last picture is never seen by its queries and has entropy 0 by causality, as one of MEDA's two blocks
             is empty; a plain ranking would evict the question first, so ranks are taken within each modality, and the
             last `recent` tokens stay. Entropy knows no mass: an entry that nobody uses may have the highest
    Cost     the attention of all prompt queries, row block by row block
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        recent: last tokens that stay in any case, inside the budget

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy("entropy", ModalityEntropy(), budget, protect=Protect(recent=recent))


@method(room="kvcache", acts="between forward passes", paper="no single paper")
def entropy_regularised(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    weight: float = 0.1,
    recent: int = 32,
    faithful: bool = False,
) -> Plugin:
    """Keep the entries that receive most attention, with a bonus for those that all modalities of queries use.

    Score    attention that the entry got from a query that could look, in multiples of the mean entry's, plus `weight`
             times the entropy over the modalities of queries as a fraction of its maximum
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    no single paper: the entropy policy of surveys of VLM caches with the mass that it lacks
    Differs  written down is the share of all attention. It is small in long prompts, so that the entropy alone decides,
             and it favours what came early; the question, of entropy 0 by causality, goes first. On the bundled model
             that answers worse than a random draw. `faithful` takes it as it is written
    Cost     the attention of all prompt queries, row block by row block
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        weight: of the entropy; 0 ranks by mass alone
        recent: last tokens that stay in any case, inside the budget
        faithful: True adds the entropy to the share of all attention

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a negative weight.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy(
        "entropy_regularised", ModalityEntropy(weight, faithful=faithful), budget, protect=Protect(recent=recent)
    )
