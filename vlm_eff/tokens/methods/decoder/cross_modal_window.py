"""The structured cross-modal mask."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_whole
from vlm_eff.models.family import causal_families
from vlm_eff.tokens.sparse_prefill import TILE, CrossModal, SparsePrefill, check_tile, sparse_prefill


@method(
    room="tokens",
    acts="inside the attention of decoder layers",
    paper="arXiv:2004.05150",
    families=causal_families(),
)
def cross_modal_window(
    window: int = 1024, sinks: int = 4, layers: Sequence[int] | None = None, tile: tuple[int, int] = TILE
) -> SparsePrefill:
    """Let visual tokens see each other only inside a window in the prefill; text sees all and is seen by all.

    Score    none: who sees whom follows from what tokens are. With i a query and j a key that is not later,
             text[i] or text[j] or j < sinks or i - j < window
    Reduce   none: no token is dropped. Decode steps attend to everything
    Paper    Longformer, arXiv:2004.05150, section 3.1: a window for all and global tokens; here text is global
    Differs  global tokens share the projections of the others, because the model is as it is; no training. Newlines
             and tile separators of an image are visual tokens. What earlier turns left in the cache counts as text;
             turns without pictures, sliding layers and layers over a compressed cache attend in full
    Cost     lists of blocks, once a prompt for all heads and layers; rows of a padded batch are computed one by one
    Saves    attention FLOPs of the prefill: of L visual tokens about 1 - 2 * window / L of them. Attention is 1 % of a
             prefill's FLOPs at 640 tokens, 6 % at 3k, a third at 32k (7B): below about 8k tokens there is nothing to
             gain. Realised by the kernel, on a GPU; its speed is not measured yet. Without it pairs are hidden, not
             spared, which is slower than dense attention. No KV cache is saved

    Args:
        window: keys up to its own that a visual token sees, of those that other plugins left; the tokens of a few
            frames, for a video. A prompt that is not longer is left untouched.
        sinks: first tokens of the prompt, which everybody sees.
        layers: decoder layers in which this is done; default all.
        tile: queries and keys of a block, as the kernel computes them; which pairs are seen does not depend on it.

    Raises:
        ConfigError: numbers out of range, layers that do not ascend.
        CapabilityError: at attach, for layers the decoder does not have and for families in which images see what
            comes after them; in a call, for masks other than padding.
    """
    check_whole("window", window)
    check_whole("sinks", sinks, 0)
    return sparse_prefill("cross_modal_window", CrossModal(window, sinks, check_tile(tile)), layers)
