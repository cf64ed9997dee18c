"""Cross-modal sensitivity: entries on which the answer depends, by its gradient."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.sensitivity import AnswerSensitivity


@method(room="kvcache", acts="between forward passes", paper="no single paper")
def sensitivity(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    recent: int = 32,
    form: Literal["gradient", "taylor"] = "gradient",
    cross: float = 0.0,
    of: Literal["greedy", "logits"] = "greedy",
) -> Plugin:
    """Keep the entries that the answer is most sensitive to, by its gradient.

    Score    |dy/dk|^2 of the key, y being the log-probability of the most likely next token; with `cross` plus that
             weight times the squared gradient that arrives through the next layer's keys of other modalities
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    no single paper: the cross-modal sensitivity that surveys of VLM caches write down, made precise
    Differs  the surveys' cross term is a derivative between keys of one layer, which is zero; this takes the path
             through the next layer, and is off by default. A prompt in chunks or a second turn is scored by its last
             call: earlier entries are then leaves, so that paths through later layers' earlier entries are not counted
    Cost     each prompt runs through the decoder a second time, forward with all activations kept, and back: about
             three times the prefill, and the memory of a training step without optimizer; `cross` one more backward
             for each modality. Works under no_grad and inference_mode; parameters get no gradient. Hooks that
             others put on layers run in that forward too
    Saves    KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        recent: last tokens that stay in any case, inside the budget
        form: "gradient", or "taylor" for |k dy/dk| + |v dy/dv|, the first-order loss when an entry goes to zero
        cross: weight of the path through the next layer, with "gradient" alone
        of: "greedy", or "logits" for the sum of the last token's logits

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, a negative weight.
        CapabilityError: a model without language-model head or made under inference_mode; while running, an offloaded
            cache.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    return CachePolicy("sensitivity", AnswerSensitivity(form, cross, of), budget, protect=Protect(recent=recent))
