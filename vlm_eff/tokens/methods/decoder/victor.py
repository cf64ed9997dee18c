"""Victor: visual tokens summarised in learned register tokens."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.tokens.registers import RegisterReducer


@method(room="tokens", acts="before and between decoder layers", paper="arXiv:2410.14072", training_free=False)
def victor(
    registers: int = 8,
    layer: int = 3,
    weights: str | None = None,
    init: Literal["normal", "pooled"] = "normal",
    untrained: bool = False,
    seed: int = 0,
) -> RegisterReducer:
    """Let a few learned register tokens read the image in the first layers, then drop all visual tokens.

    Reduce   register (learned; one set a row, behind the last visual token of its last image)
    When     appended before the language model; the visual tokens are dropped at the input of `layer` (0-based)
    Paper    Victor, arXiv:2410.14072, section 3; no official code. Defaults of the paper: 8 registers, layer 3
    Differs  the paper gives registers positions of their own and trains the model with them. Here lengths and positions
             stay what Hugging Face sees: register i of R has the position of the row's (V - R + i)-th visual token. The
             model may be frozen or not. `init="pooled"` is our own warm start: a register begins as the mean of its
             region's visual tokens plus a learned vector.
    Cost     R more tokens in the first `layer` layers    Saves  prefill FLOPs and KV cache from `layer` on; realised

    The weights belong to one model, R and `layer`: train them (docs/registers.md), save them with
    `handle.weights["victor"].save(path)` and give the path back. Rows without images get no registers.

    Args:
        registers: register tokens of a row, at most as many as it has visual tokens.
        layer: decoder layer at whose input the visual tokens are dropped; the number of layers keeps them throughout.
        weights: safetensors file of trained registers; None starts anew, which makes sense for training only.
        init: "normal": N(0, 0.02), as ports of the paper do; "pooled": means of regions plus a learned vector from 0.
        untrained: allow a model in eval mode without weights, to train registers of a frozen model or to test.
        seed: of the normal start; the global random state is not touched.

    Raises:
        ConfigError: numbers below 1, or a weights file that is missing or was made for something else.
        CapabilityError: at attach, for a layer the decoder does not have or registers without weights in eval mode; in
            a call, for a row with fewer visual tokens than registers.
    """
    return RegisterReducer("victor", registers, layer, weights, init, untrained, seed)
