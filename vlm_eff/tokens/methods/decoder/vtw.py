"""Visual token withdrawal, and the search for its layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, StateError, explain
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.attach import attach
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage


@method(room="tokens", acts="between decoder layers", paper="arXiv:2405.05803")
def vtw(layer: int | None = None, positions: Literal["kept", "reindexed"] = "kept") -> TokenReducer:
    """Drop all visual tokens at one layer: the later layers see text alone.

    Score    none; every visual token goes     Select   none     Reduce  drop     When  once, at the input of `layer`
    Paper    VTW, arXiv:2405.05803, section 3.2; follows the released code: positions stay
    Differs  the layer is a fraction of the decoder's depth unless given. `withdrawal_layer` finds it as the paper does.
    Cost     none                              Saves  prefill FLOPs and KV cache from `layer` on; realised

    Args:
        layer: decoder layer at whose input visual tokens end, at least 1; default 15/32 of the decoder, 15 of 32 as in
            the paper. Layer 0 would be a model that never sees the image and is refused.
        positions: "kept" (official) or "reindexed".

    Raises:
        ConfigError: a layer below 1.
        CapabilityError: at attach, for a layer the decoder does not have.
    """
    if layer == 0:
        raise ConfigError(explain("layer=0", "a layer of at least 1", "Withdraw later, or leave the image out"))
    place = {"depth": 15 / 32} if layer is None else {"layer": layer}
    stage = Stage(Keep(count=0, least=0), **place)  # type: ignore[arg-type]
    return TokenReducer("vtw", (stage,), position_mode=positions)


def withdrawal_layer(model: Any, prompts: Sequence[dict[str, Any]], threshold: float) -> int:
    """The smallest layer at which visual tokens can be withdrawn without moving the next token's distribution.

    model:     as `attach` takes it; nothing may be attached to it
    prompts:   inputs of the model, one dict a call; the paper uses some 20 samples
    threshold: nats; the mean over all rows of KL(bare || withdrawn) of the next token must be below it

    Source: VTW, arXiv:2405.05803, section 3.2. The paper searches on samples of the task at hand.
    Costs one bare prefill, and one with the plugin for every layer tried, of all prompts.

    Raises:
        ConfigError: no prompts, or a threshold that is not above 0.
        StateError: no layer of the decoder is below the threshold.
    """
    if not prompts or not threshold > 0:
        raise ConfigError(
            explain(
                f"{len(prompts)} prompts and threshold={threshold!r}",
                "one prompt or more, and a threshold above 0",
                "Give some prompts of your task and how far the answer may move",
            )
        )
    wanted = [_next_token(model, prompt) for prompt in prompts]
    found = []
    for layer in range(1, adapter_for(model).num_layers):
        with attach(model, vtw(layer)):
            moved = [_kl(want, _next_token(model, prompt)) for want, prompt in zip(wanted, prompts, strict=True)]
        found.append(float(torch.cat(moved).mean()))
        if found[-1] < threshold:
            return layer
    raise StateError(
        explain(
            f"no layer withdraws the image below threshold={threshold:g}; the best moves {min(found):.3g} nats",
            "a threshold that some layer meets",
            "Raise the threshold, or use a method that keeps tokens",
        )
    )


def _next_token(model: Any, prompt: dict[str, Any]) -> Tensor:
    """Log-probabilities of the token after each row's prompt [B, vocabulary], float32."""
    with torch.no_grad():
        logits = model(**prompt).logits
    mask = prompt.get("attention_mask")
    if mask is None:
        return logits[:, -1].float().log_softmax(-1)
    last = mask.shape[1] - 1 - mask.flip(1).to(torch.int8).argmax(1)
    return logits[torch.arange(len(last)), last.to(logits.device)].float().log_softmax(-1)


def _kl(bare: Tensor, withdrawn: Tensor) -> Tensor:
    """KL divergence of two log-distributions [B, vocabulary], nats [B]."""
    return (bare.exp() * (bare - withdrawn)).sum(-1)
