"""Blocks of attention chosen while the prompt is read: vertical-slash heads, and the best blocks."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_one, check_ratio, check_whole
from vlm_eff.models.family import causal_families
from vlm_eff.tokens.sparse_prefill import TILE, SparsePrefill, TopBlocks, VerticalSlash, check_tile, sparse_prefill


@method(
    room="tokens",
    acts="inside the attention of decoder layers",
    paper="arXiv:2407.02490",
    families=causal_families(),
)
def vertical_slash(
    verticals: int = 500,
    slashes: int = 700,
    last: int = 64,
    sinks: int = 30,
    local: int = 100,
    layers: Sequence[int] | None = None,
    tile: tuple[int, int] = TILE,
) -> SparsePrefill:
    """Compute each head's prefill attention only at the keys and distances that the prompt's last tokens look at.

    Score    attention of the `last` rows, summed by key and by distance between query and key, head by head
    Reduce   none: no token is dropped. Decode steps attend to everything
    Paper    MInference, arXiv:2407.02490, its vertical-slash heads
    Differs  every head has this pattern and the same budget; there both are searched offline for each head. Diagonals
             take whole blocks of a fixed grid, there blocks at any offset. Padding is taken out first, so that a row
             does not depend on its batch. Turns without pictures, sliding layers and layers over a compressed cache
             attend in full
    Cost     2 * last / L of the products it stands for, some passes over last * L numbers a head, and lists of blocks
             and keys for each head and layer; rows of a padded batch are computed one by one
    Saves    attention FLOPs of the prefill; how many the report says. Attention is 1 % of a
             prefill's FLOPs at 640 tokens, 6 % at 3k, a third at 32k (7B): below about 8k tokens there is nothing to
             gain. Realised by the kernel, on a GPU; its speed is not measured yet. Without it pairs are hidden, not
             spared, which is slower than dense attention. No KV cache is saved

    Args:
        verticals: keys of each head that all later queries see. A prompt that has no more is left untouched.
        slashes: distances of each head at which every query sees a key; one that costs a block or two. A prompt that
            has no more is left untouched.
        last: rows of the prompt that are looked at.
        sinks: first tokens, which are among the verticals in any case.
        local: shortest distances, which are among the slashes in any case.
        layers: decoder layers in which this is done; default all.
        tile: queries and keys of a block, as the kernel computes them; slashes are rounded to such blocks.

    Raises:
        ConfigError: numbers out of range, layers that do not ascend.
        CapabilityError: at attach, for layers the decoder does not have and for families in which images see what
            comes after them; in a call, for masks other than padding.
    """
    for name, value in (("verticals", verticals), ("slashes", slashes), ("last", last), ("local", local)):
        check_whole(name, value)
    check_whole("sinks", sinks, 0)
    return sparse_prefill(
        "vertical_slash", VerticalSlash(verticals, slashes, last, sinks, local, check_tile(tile)), layers
    )


@method(
    room="tokens",
    acts="inside the attention of decoder layers",
    paper="arXiv:2502.18137",
    families=causal_families(),
)
def top_blocks(
    keep_mass: float | None = None,
    keep_count: int | None = None,
    similarity: float | None = None,
    layers: Sequence[int] | None = None,
    tile: tuple[int, int] = TILE,
) -> SparsePrefill:
    """Compute prefill attention only in the blocks of tokens whose mean query and mean key agree best, head by head.

    Score    mean query times mean key of a pair of blocks, softmaxed over the blocks of keys
    Select   the fewest blocks of keys that hold `keep_mass` of that, or the `keep_count` best; the first block and the
             diagonal always
    Reduce   none: no token is dropped. Decode steps attend to everything
    Paper    SpargeAttn, arXiv:2502.18137 (mass); the block-sparse heads of MInference, arXiv:2407.02490 (count)
    Differs  products are not quantised, and no block is left out for what its softmax turns out to be. Every head has
             this pattern. Padding is taken out first, so that a row does not depend on its batch. Turns without
             pictures, sliding layers and layers over a compressed cache attend in full
    Cost     means over queries and keys, and a sort of the scores of blocks for each head and layer; rows of a padded
             batch are computed one by one
    Saves    attention FLOPs of the prefill; how many the report says. Attention is 1 % of a
             prefill's FLOPs at 640 tokens, 6 % at 3k, a third at 32k (7B): below about 8k tokens there is nothing to
             gain. Realised by the kernel, on a GPU; its speed is not measured yet. Without it pairs are hidden, not
             spared, which is slower than dense attention. No KV cache is saved

    Args:
        keep_mass: fraction of the softmax over blocks that the chosen ones hold; 1 leaves the model untouched. Default
            0.9, where `keep_count` is not given.
        keep_count: blocks of keys for each block of queries.
        similarity: mean cosine between the tokens of a block below which its mean says too little, so that the block is
            always computed; -1 to 1. SpargeAttn tunes it for each layer; default: not asked.
        layers: decoder layers in which this is done; default all.
        tile: queries and keys of a block, as the kernel computes them and as they are chosen.

    Raises:
        ConfigError: both budgets, numbers out of range, layers that do not ascend.
        CapabilityError: at attach, for layers the decoder does not have and for families in which images see what
            comes after them; in a call, for masks other than padding.
    """
    if keep_mass is None and keep_count is None:
        keep_mass = 0.9
    check_one({"keep_mass": keep_mass, "keep_count": keep_count}, "Give keep_mass or keep_count")
    check_ratio("keep_mass", keep_mass)
    if keep_count is not None:
        check_whole("keep_count", keep_count)
    number = isinstance(similarity, (int, float)) and not isinstance(similarity, bool)
    if similarity is not None and not (number and -1 <= similarity <= 1):
        raise ConfigError(explain(f"similarity={similarity!r}", "a cosine from -1 to 1", "Give a number"))
    return sparse_prefill("top_blocks", TopBlocks(keep_count, keep_mass, similarity, check_tile(tile)), layers)
