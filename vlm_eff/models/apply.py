"""Carrying out an action: hidden states, the map of survivors and the candidates, brought to what is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.action import Action, Append, Keep, Merge, TakeOver
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.kernels.compact import compact
from vlm_eff.models.call import Call
from vlm_eff.models.registers import append, take_over
from vlm_eff.models.token_map import TokenMap
from vlm_eff.models.visual import VisualSpans


def apply_action(
    action: Action, hidden: Tensor, survivors: TokenMap, spans: VisualSpans, ordered: bool = True
) -> tuple[Tensor, TokenMap, VisualSpans]:
    """Drop or merge candidates, append tokens, or let appended tokens take the candidates' places.

    hidden: [B, N, D] in the layout of `survivors`; `action` speaks of columns of `spans`.
    Returns hidden states, map and candidates of what is kept. Everything that is no candidate stays.
    """
    if isinstance(action, Append):
        return *append(action, hidden, survivors, spans, ordered), spans
    if isinstance(action, TakeOver):
        owned, order, carriers = take_over(survivors, spans)
        return compact([hidden], order)[0], owned, carriers
    assert isinstance(action, Keep)
    if isinstance(action, Merge):
        hidden = _write(action, hidden, survivors, spans)
    kept = spans.take(action.index, action.valid)
    gone = spans.mask(survivors.length) & ~kept.mask(survivors.length)
    narrowed, order = survivors.narrow(~gone.gather(1, survivors.index))
    return compact([hidden], order)[0], narrowed, kept


def _write(action: Merge, hidden: Tensor, survivors: TokenMap, spans: VisualSpans) -> Tensor:
    """Hidden states with the merged contents written at the kept candidates."""
    slots = survivors.physical(spans.slot.gather(1, action.index))
    spare = hidden.shape[1]
    wide = torch.cat([hidden, hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2])], 1)
    target = torch.where(action.valid, slots, spare)[:, :, None].expand(-1, -1, hidden.shape[2])
    return wide.scatter(1, target, action.hidden.to(hidden.dtype))[:, :spare]


def check_labels(labels: Tensor | None, visual: Tensor, survivors: TokenMap) -> None:
    """Raise when a supervised label follows a dropped token: the shifted loss would lose its predictor."""
    if labels is None or labels.shape != visual.shape:
        return
    target = torch.where(survivors.valid, survivors.index, survivors.length)
    present = torch.nn.functional.pad(torch.zeros_like(visual), (0, 1)).scatter_(1, target, True)[:, :-1]
    dropped = visual & ~present
    if bool((dropped[:, :-1] & (labels[:, 1:].to(visual.device) != -100)).any()):
        raise CapabilityError(
            explain(
                "a supervised label right after a visual token that is dropped",
                "labels of -100 on visual tokens and on the token after an image",
                "Set those labels to -100, or compute the loss without the plugin",
            )
        )


def renumber(
    call: Call, position_ids: Tensor | None, survivors: TokenMap, past_shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Positions without gaps: a table over logical slots [B, S], of which those of survivors count, and what later
    tokens must subtract from theirs [B].

    The first real token of the call keeps its place behind what the layer already holds; padding gets position 0.
    """
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        raise CapabilityError(
            explain("a layer without one-axis position ids", "families with one-axis positions", 'Use positions="kept"')
        )
    base = position_ids.expand(call.rows, -1)
    real = call.real()
    first = base.gather(1, real.to(torch.int8).argmax(1, keepdim=True))
    if past_shift is not None:
        first = first - past_shift[:, None]
    counted = real.gather(1, survivors.index) & survivors.valid
    made = (first + counted.cumsum(1) - 1).clamp(min=0)
    last = call.length - 1 - real.flip(1).to(torch.int8).argmax(1, keepdim=True)
    shift = base.gather(1, last) - (first + counted.sum(1, keepdim=True) - 1)
    return survivors.scatter(made), shift[:, 0]
