"""LOOK-M: text first, and evicted image entries merged into kept ones."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import is_number
from vlm_eff.kvcache.merge import MergeInto, Mixing
from vlm_eff.kvcache.modality import TextFirst
from vlm_eff.kvcache.policy import CachePolicy, Evict, Treatment, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import Accumulated

Merging = Literal["pivotal", "average", "weighted", "counted"] | None


@method(room="kvcache", acts="between forward passes", paper="arXiv:2406.18139")
def look_m(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent_share: float = 0.5,
    merge: Merging = "counted",
) -> Plugin:
    """Keep text before images, each by the attention it received, and merge evicted image entries into kept ones.

    Score    attention received from all queries of the prompt; text ranks before everything visual
    Budget   the same for every layer and head, a share `recent_share` of it for the last tokens
    Treat    merge: each evicted image entry goes into the kept entry whose key has the largest cosine, layer by layer
             and head by head     When  once after each prompt or turn
    Paper    LOOK-M, arXiv:2406.18139, sections 3.2 and 3.3
    Differs  text first is a rank and no added constant: in the fp16 of the official code all images fall on one value
             and their order is lost. The official code keeps all text even beyond the budget; here text stays as far as
             the budget goes. "pivotal" (the official default), "average" and "weighted" merge as published: into any
             kept entry, and a merged entry counts once. The default "counted" is ours: the logit of an entry that
             stands for m gets log m, which makes merging equal entries exact, images go only into images, and nothing
             into the window or the first 4 tokens; published merges pull text towards images
    Cost     the attention of all prompt queries, row block by row block, and one cosine for each pair of an evicted
             and a kept entry          Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2, half of it recent
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        recent_share: fraction of the budget that goes to the last tokens; paper 0.1 of 0.2
        merge: "counted", "pivotal", "average", "weighted", or None to evict

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, an unknown merge.
    """
    if not is_number(recent_share) or not 0 <= recent_share <= 1:
        raise ConfigError(
            explain(f"recent_share={recent_share!r}", "a share in [0, 1]", "Give the share of the budget")
        )
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy(
        "look_m",
        TextFirst(Accumulated(steps=False)),
        budget,
        protect=Protect(share=recent_share),
        treat=treatment(merge),
    )


def treatment(merge: Mixing | None) -> Treatment:
    """What becomes of evicted entries under the name `merge` of a mixing; None evicts."""
    return Evict() if merge is None else MergeInto(merge, apart=merge == "counted")
