"""Which methods a comparison at equal budgets is about, and why the others have no row in it."""

from __future__ import annotations

from vlm_eff.core.registry import METHODS

# why a training-free method has no row
_VIDEO = "acts on videos; a picture passes untouched"
EXEMPT: dict[str, str] = {
    **dict.fromkeys(("dycoke", "evs", "fastvid", "prunevid", "vcast"), _VIDEO),
    "zipvl_attention": "every token stays; only attention is computed among fewer",
    **dict.fromkeys(
        ("cross_modal_window", "streaming_heads", "top_blocks", "vertical_slash"),
        "every token stays; only pairs of them are left out of attention",
    ),
    "adaptive_pool": "pools to a grid that is given, not to a budget; average_pool is the same pooling at a budget",
}


def budget_methods(family: str) -> tuple[str, ...]:
    """Training-free methods that change how many visual tokens the decoder of a family sees."""
    # a method of the tower gives every token back before the decoder
    known = [
        method for method in map(METHODS.get, METHODS) if "vision tower" not in method.acts and method.serves(family)
    ]
    return tuple(m.name for m in known if m.room == "tokens" and m.training_free and m.name not in EXEMPT)
