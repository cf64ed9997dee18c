"""Streaming heads: most heads need the first tokens and the last ones."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_several, check_whole
from vlm_eff.models.family import causal_families
from vlm_eff.tokens.sparse_prefill import TILE, SparsePrefill, Streaming, check_tile, sparse_prefill

_PAIRS = "pairs (layer, key head), such as ((0, 1), (3, 0))"


@method(
    room="tokens",
    acts="inside the attention of decoder layers",
    paper="arXiv:2410.10819",
    families=causal_families(),
)
def streaming_heads(
    sinks: int = 64,
    local: int = 256,
    dense_heads: Sequence[Sequence[int]] = (),
    layers: Sequence[int] | None = None,
    tile: tuple[int, int] = TILE,
) -> SparsePrefill:
    """Let streaming heads see the first tokens and the last ones in the prefill, and dense heads everything.

    Score    none: who sees whom follows from the place, j < sinks or i - j < local
    Reduce   none: no token is dropped. Decode steps attend to everything
    Paper    DuoAttention, arXiv:2410.10819; the prefill of LServe, arXiv:2502.14866. With no dense head it is the
             A-shape of MInference, arXiv:2407.02490
    Differs  which heads are dense is learned there; here it is told, and by default none is, which loses what lies in
             the middle. The cache of streaming heads is not cut. Turns without pictures, sliding layers and layers over
             a compressed cache attend in full
    Cost     lists of blocks for each layer; rows of a padded batch are computed one by one
    Saves    attention FLOPs of the prefill: of L tokens about 1 - 2 * (sinks + local) / L of those of streaming heads.
             Attention is 1 % of a prefill's FLOPs at 640 tokens, 6 % at 3k, a third at 32k (7B): below about 8k tokens
             there is nothing to gain. Realised by the kernel, on a GPU; its speed is not measured yet. Without it pairs
             are hidden, not spared, which is slower than dense attention. No KV cache is saved

    Args:
        sinks: first tokens of the prompt, which every head sees.
        local: keys up to its own that a query sees. A prompt that is not longer than both is left untouched.
        dense_heads: pairs (layer, key head) that see everything; all query heads of a key head do.
        layers: decoder layers in which this is done; default all.
        tile: queries and keys of a block, as the kernel computes them; which pairs are seen does not depend on it.

    Raises:
        ConfigError: numbers out of range, layers that do not ascend, dense heads that are no pairs or do not exist, or
            beside a window shorter than a block's queries and keys together.
        CapabilityError: at attach, for layers the decoder does not have and for families in which images see what
            comes after them; in a call, for masks other than padding.
    """
    check_whole("sinks", sinks, 0)
    check_whole("local", local)
    rows, columns = check_tile(tile)
    dense = _pairs(dense_heads)
    if dense and local < rows + columns - 1:
        got = f"dense heads beside local={local} and blocks of {rows} by {columns}"
        raise ConfigError(explain(got, f"local of at least {rows + columns - 1}", "Take a longer window"))
    return sparse_prefill("streaming_heads", Streaming(sinks, local, dense, (rows, columns)), layers)


def _pairs(given: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    pairs = [check_several("dense_heads", pair, _PAIRS) for pair in check_several("dense_heads", given, _PAIRS)]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(one, int) and one >= 0 for one in pair):
            raise ConfigError(explain(f"dense_heads={given!r}", _PAIRS, "Give layer and key head of each"))
    return tuple((layer, head) for layer, head in pairs)
