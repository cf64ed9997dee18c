"""LazyLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep, check_ratio
from vlm_eff.tokens.reviver import RevivingTokenReducer
from vlm_eff.tokens.schedule import Stage, check_layers
from vlm_eff.tokens.scores import QueryAttention


@method(room="tokens", acts="between decoder layers", paper="arXiv:2407.14057")
def lazyllm(
    keep_ratio: float = 0.7,
    layers: Sequence[int] | None = None,
    revive: Literal["steps", "turns", "never"] = "steps",
    revive_ratio: float | None = None,
) -> RevivingTokenReducer:
    """Drop visual tokens stage by stage, and bring back those that a later token or question looks at.

    Score    attention of the last prompt token in the layer before the stage, mean over heads  [B, V]; at a later call
             the attention of its own last token there
    Select   top-k of the sample; at a later call the missing ones of its top-k come back     Reduce  drop, into a side
             store     When  at the input of each of `layers` (0-based); again at every later call without images
    Paper    LazyLLM, arXiv:2407.14057, section 3; no official code is known to us
    Differs  only visual tokens are dropped, where the paper drops words too. What a later query does not look at stays
             in the cache: nothing is dropped a second time. The depths 30, 60 and 90 % and the factor of each stage are
             ours. A token that comes back sees only tokens before it, on families with bidirectional images too. A call
             that brings an image brings nothing back. docs/revival.md says what is stored and when it pays.
    Cost     one attention row a stage and call, and the layers of whatever comes back; the store takes memory: hidden
             state and rotary row of every dropped token, which `stats().store_bytes` counts
    Saves    prefill FLOPs and KV cache from the first stage on; realised, less what comes back

    Args:
        keep_ratio: factor of each stage, (0, 1]: stage i keeps keep_ratio**i of the original tokens, rounded up.
        layers: decoder layers of the stages, each at least 1; default 30, 60 and 90 % of the decoder.
        revive: "steps" at decode steps and later turns; "turns" only in calls with several new tokens; "never".
        revive_ratio: at a later call, how many of the original visual tokens count as looked at, (0, 1]; default as
            many as the stage keeps.

    Raises:
        ConfigError: a ratio outside (0, 1], layers that do not ascend, a first layer of 0 with revival.
        CapabilityError: at attach, for layers the decoder does not have; with revival, on families with sliding layers
            and under flash attention; at a call, for stages among layers that image features are added after
            (Qwen3-VL's first three), and for assisted decoding.
    """
    check_ratio("keep_ratio", keep_ratio)
    check_layers(layers)
    places = [{"layer": layer} for layer in layers] if layers else [{"depth": d} for d in (0.3, 0.6, 0.9)]
    stages = tuple(
        Stage(Keep(ratio=keep_ratio ** (i + 1)), score=QueryAttention(), **place)  # type: ignore[arg-type]
        for i, place in enumerate(places)
    )
    return RevivingTokenReducer("lazyllm", stages, revive=revive, revive_ratio=revive_ratio)
