"""Attention of one layer among some of its tokens; the others pass by it, on the residual stream alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.action import Attend
from vlm_eff.kernels.selected_attention import selected_attention
from vlm_eff.models.call import Call
from vlm_eff.models.masks import map_mask, plain_first
from vlm_eff.models.observe import gather_rows
from vlm_eff.models.token_map import TokenMap

# what may come along and only the model's own attention function knows what to do with
_ITS_OWN = ("softcap", "position_bias", "s_aux", "cache")


@dataclass(frozen=True)
class Among:
    """Attends among `tokens`, a map over the physical slots of the layer, and over all keys of earlier calls.

    call: the call this happens in; it knows which slots are padding, and remembers what was found out about a mask
    """

    tokens: TokenMap
    call: Call

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Tensor, Tensor], mask: Any, kwargs: Any
    ) -> Any:
        """Run attention on the short sequence; whoever takes no part gets zeros.

        states: query [B, H, N, Dh], key and value [B, Hkv, S, Dh] after the cache, which stores everybody.
        Returns the output [B, N, H, Dh] and, from eager attention, the weights of the short sequence. Gathers inside
        the kernel where nothing speaks against it (`why_not`), else gathers first and lets `run` attend.
        """
        if self.why_not(module, mask, kwargs) is None:
            return self._fused(states, mask, kwargs.get("scaling")), None
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

    def why_not(self, module: nn.Module, mask: Any, kwargs: Any) -> str | None:
        """Why the layer's own attention function has to attend; None when `selected_attention` may take its place."""
        name = module.config._attn_implementation  # type: ignore[union-attr]
        if (base := getattr(name, "base", name)) != "sdpa":
            return f"{base} attention, which was chosen for the model, may return weights or want its own mask"
        if kwargs.get("dropout"):
            return "dropout of attention weights"
        for own in _ITS_OWN:
            if kwargs.get(own) is not None:
                return f"{own}, which the layer's own attention function knows"
        causal = kwargs.get("is_causal")
        if not (getattr(module, "is_causal", True) if causal is None else causal):
            return "attention in both directions"
        if mask is not None and self._first(mask) is None:
            return "a mask that is more than causal with padding: a window, or images that look ahead"
        return None

    def _fused(self, states: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, scaling: float | None) -> Tensor:
        """The output [B, N, H, Dh]; padding takes no part, as if nobody had chosen it."""
        tokens, first = self.tokens, None
        valid = tokens.valid if tokens.ragged else None
        if mask is not None:
            valid = tokens.valid & self._real().gather(1, tokens.index)
            first = self._first(mask) if states[1].shape[2] > states[0].shape[2] else None
        output = selected_attention(*states, tokens.index, valid, scaling=scaling, first=first)
        assert isinstance(output, Tensor)
        return output.transpose(1, 2)

    def _real(self) -> Tensor:
        """Which physical slots of the layer are neither padding nor fillers [B, N]."""
        present = self.call.present()
        return self.call.shared("real", (present,), lambda: self.call.real().gather(1, present.index) & present.valid)

    def _first(self, mask: Any) -> Tensor | None:
        """First key that is no padding [B] where a mask says no more than that; found out once for each mask."""
        real = self._real()
        return self.call.shared("first", (mask, real), lambda: plain_first(mask, real))


def among(call: Call, layer: int, action: Attend) -> Among:
    """What an action means in the layer that attends now; noted in the call."""
    assert call.spans is not None
    survivors, spans = call.present(), call.spans
    taken = spans.take(action.index, action.valid)
    bypass = spans.mask(call.length) & ~taken.mask(call.length)
    stays = ~bypass.gather(1, survivors.index) & survivors.valid
    tokens, _ = TokenMap.identity(call.rows, survivors.size, call.device).narrow(stays)
    call.attended[layer] = replace(tokens, index=survivors.index.gather(1, tokens.index), length=call.length)
    return Among(tokens, call)
