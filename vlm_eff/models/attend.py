"""Attention of one layer among some of its tokens; the others pass by it, on the residual stream alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.action import Attend
from vlm_eff.models.call import Call
from vlm_eff.models.masks import map_mask
from vlm_eff.models.observe import gather_rows
from vlm_eff.models.token_map import TokenMap


@dataclass(frozen=True)
class Among:
    """Attends among `tokens`, a map over the physical slots of the layer, and over all keys of earlier calls."""

    tokens: TokenMap

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Tensor, Tensor], mask: Any, kwargs: Any
    ) -> Any:
        """Run the attention function `run` on the short sequence; whoever takes no part gets zeros.

        states: query [B, H, N, Dh], key and value [B, Hkv, S, Dh] after the cache, which stores everybody.
        Returns what `run` returns: the output [B, N, H, Dh] and, from eager attention, the weights of the short
        sequence.
        """
        query, key, value = states
        tokens, total = self.tokens, key.shape[2]
        past = total - query.shape[2]
        older = torch.arange(past, device=key.device).expand(tokens.index.shape[0], -1)
        columns = torch.cat([older, past + tokens.index], 1)
        valid = torch.cat([torch.ones_like(older, dtype=torch.bool), tokens.valid], 1) if tokens.ragged else None
        flash = "flash" in module.config._attn_implementation  # type: ignore[union-attr]
        if flash and mask is None and valid is not None:
            # flash attention takes a mask of columns alone
            mask = torch.ones(valid.shape[0], total, dtype=torch.long, device=key.device)
        mask = map_mask(mask, columns, valid, tokens, total, query.shape[2])
        if "position_ids" in kwargs:
            # a gap would be read as the border of a packed sequence; the rotation is done already
            kwargs = kwargs | {"position_ids": None}
        short = (gather_rows(query, tokens.index), gather_rows(key, columns), gather_rows(value, columns))
        output, weights = run(module, *short, mask, **kwargs)
        return tokens.scatter(output), weights


def among(call: Call, layer: int, action: Attend) -> Among:
    """What an action means in the layer that attends now; noted in the call."""
    assert call.spans is not None
    survivors, spans = call.present(), call.spans
    taken = spans.take(action.index, action.valid)
    bypass = spans.mask(call.length) & ~taken.mask(call.length)
    stays = ~bypass.gather(1, survivors.index) & survivors.valid
    tokens, _ = TokenMap.identity(call.rows, survivors.size, call.device).narrow(stays)
    call.attended[layer] = replace(tokens, index=survivors.index.gather(1, tokens.index), length=call.length)
    return Among(tokens)
