"""Tokens that a plugin appends behind the last visual token of each row: for Hugging Face they do not exist.

Each register stands on the logical position of a carrier, one of the row's last visual tokens. While the carrier is
there too, the register is its guest: it shares the carrier's rotary position and mask column, and is left out whenever
something is brought to full length. Once the visual tokens are dropped the register owns the place.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlm_eff.core.action import Append
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.kernels.compact import compact
from vlm_eff.models.token_map import Registers, TokenMap
from vlm_eff.models.visual import VisualSpans


def append(
    action: Append, hidden: Tensor, survivors: TokenMap, spans: VisualSpans, ordered: bool
) -> tuple[Tensor, TokenMap]:
    """Hidden states [B, N + R, D] and the map with the new tokens in their places.

    ordered: False where a prefix is attended in both directions, so that everything in it sees the new tokens

    Raises:
        CapabilityError: a row has fewer visual tokens than it is to get new ones.
    """
    new = action.hidden.shape[1]
    seats = _carriers(action, spans, new)
    anchor = seats[:, -1:]
    here = survivors.physical(anchor)
    # place of everything in the longer sequence: rows without new tokens get fillers in front
    old = torch.arange(survivors.size, device=hidden.device) * (new + 1)
    step = torch.arange(1, new + 1, device=hidden.device)
    added = torch.where(action.valid[:, None], here * (new + 1) + step, step - new - 1)
    order = torch.argsort(torch.cat([old.expand(len(added), -1), added], 1), dim=1, stable=True)
    present = action.valid[:, None].expand_as(seats)
    mark = torch.cat([torch.zeros_like(survivors.valid), present], 1).gather(1, order)
    ragged = survivors.ragged or not bool(action.valid.all())
    longer = TokenMap(
        torch.cat([survivors.index, seats], 1).gather(1, order),
        torch.cat([survivors.valid, present], 1).gather(1, order),
        survivors.length,
        ragged,
        Registers(mark, anchor, guests=True, count=new, ordered=ordered),
    )
    both = torch.cat([hidden, action.hidden.to(hidden.dtype)], 1)
    return compact([both], order)[0], longer


def _carriers(action: Append, spans: VisualSpans, new: int) -> Tensor:
    """Logical slot of each new token [B, R]; of rows without any, the slot of their last token."""
    count = spans.count
    if bool((action.valid & (count < new)).any()):
        least = int(count[action.valid].min())
        raise CapabilityError(
            explain(
                f"{new} register tokens for a row with {least} visual tokens",
                "at most as many registers as a row has visual tokens",
                "Use fewer registers, or larger images",
            )
        )
    columns = (count[:, None] - new + torch.arange(new, device=count.device)).clamp(min=0)
    return torch.where(action.valid[:, None], spans.slot.gather(1, columns), 0)


def take_over(survivors: TokenMap, spans: VisualSpans) -> tuple[TokenMap, Tensor, VisualSpans]:
    """Drop all candidates; the registers stay on the places of their carriers.

    Returns the map, the physical slots [B, N] to gather, and the carriers as the candidates that are left.
    """
    registers = survivors.registers
    if registers is None:
        raise CapabilityError(
            explain("registers are to take over, and there are none", "registers appended before", "Append them first")
        )
    visual = spans.mask(survivors.length).gather(1, survivors.index)
    narrowed, order = survivors.narrow(registers.mark | ~visual)
    assert narrowed.registers is not None
    owned = replace(narrowed, registers=replace(narrowed.registers, guests=False))
    count = spans.count
    columns = count[:, None] - registers.count + torch.arange(registers.count, device=count.device)
    return owned, order, spans.take(columns.clamp(min=0), columns >= 0)


def return_guests(survivors: TokenMap, full: Tensor, before: Tensor | None) -> Tensor:
    """Bring full-length hidden states [B, S, D] to the survivors; registers take up what they were in `before`."""
    gathered = survivors.gather(full)
    if survivors.registers is None or before is None:
        return gathered
    return torch.where(survivors.registers.mark[:, :, None], before, gathered)


def hide_registers(mask: Tensor, queries: TokenMap) -> Tensor:
    """The mask [B, h, N, K] of a call with registers: nobody sees a register that comes later."""
    registers = queries.registers
    if registers is None or not registers.ordered:
        return mask
    later = torch.ones(queries.size, queries.size, dtype=torch.bool, device=mask.device).triu(1)
    hidden = torch.nn.functional.pad(registers.mark[:, None, :] & later, (mask.shape[-1] - queries.size, 0))[:, None]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
