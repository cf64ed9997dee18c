"""Hessian-aware eviction: what the layer's output loses when an entry goes."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.deletion import DeletionCost, DeletionForm
from vlm_eff.kvcache.policy import CachePolicy, budget_of
from vlm_eff.kvcache.protect import Protect
from vlm_eff.kvcache.scores import last_rows


@method(room="kvcache", acts="between forward passes", paper="no single paper")
def hessian(
    keep_ratio: float | None = None,
    keep_count: int | None = None,
    keep_bytes: int | None = None,
    window: int = 32,
    form: DeletionForm = "exact",
    cross: float = 1.0,
    centre: bool = False,
    metric: Literal["value", "output"] = "value",
) -> Plugin:
    """Keep the entries whose loss would change the layer's output most.

    Score    squared change of the outputs of the last `window` text rows when the entry alone goes, summed over rows
             and the query heads of a group: sum of (A / (1 - A))^2 |v - o|^2
    Budget   the same for every layer and head     Treat  evict     When  once after each prompt or turn
    Paper    no single paper: Optimal Brain Damage on the layer's output, as OBCache does for text, with a factor
             between modalities as surveys of VLM caches ask for
    Differs  the surveys put gradients where Optimal Brain Damage has the entry itself, and disagree on the cross term;
             this has neither fault. The default is the deletion itself. "key" and "joint" set a key to zero, whose
             logit is then 0 and not minus infinity, so that they move with a common offset of the logits; see `centre`
    Cost     `window` attention rows a layer and one product with the values; with `metric="output"` one more of the
             projection with itself                Saves  KV cache and attention of decode steps; realised

    Args:
        keep_ratio: fraction of the tokens seen that stays, in (0, 1], rounded up; default 0.2
        keep_count: entries a layer and key head instead
        keep_bytes: bytes of one row's keys and values instead
        window: text rows that look; as many of the last tokens stay, inside the budget
        form: "exact"; "value" sum A^2 |v|^2; "key" sum (A z)^2 |v - o|^2; "joint" both and their cross term
        cross: factor of the squares where query and entry are of different modalities; above 1 favours what the
            question sees in the picture
        centre: take each row's mean logit out before "key" and "joint"
        metric: "value" the head's output, "output" what the output projection makes of it

    Raises:
        ConfigError: no budget or two, a ratio outside (0, 1], counts that are no whole numbers, an unknown form.
        CapabilityError: while running, with `metric="output"`, a layer whose output projection is quantised.
    """
    budget = budget_of(keep_ratio, keep_count, keep_bytes, 0.2)
    score = DeletionCost(form, cross, centre, metric, last_rows("text", window))
    return CachePolicy("hessian", score, budget, protect=Protect(recent=window))
