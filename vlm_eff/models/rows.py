"""Which tokens of a prompt are text, which of them ask the question, and which rows stand for all of them."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.importance.select import from_mask
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.call import Call, find_ids
from vlm_eff.models.token_map import TokenMap


@dataclass(frozen=True)
class Rows:
    """Some tokens of each row of a batch, in sequence order.

    slot:  [B, R] position in the sequence that the model was called with; the same at every layer
    valid: [B, R] False beyond a row's own count
    """

    slot: Tensor
    valid: Tensor

    @property
    def count(self) -> Tensor:
        """Tokens of each row [B]."""
        return self.valid.sum(1)

    def only(self, wanted: Tensor) -> Rows:
        """The tokens marked in `wanted` [B, R]; columns stay where they are."""
        return replace(self, valid=self.valid & wanted)


@dataclass(frozen=True)
class Attended:
    """Attention of some query rows, reduced over these rows.

    weight:  [B, H, S] sum or maximum over the rows, over all keys, float32
    looks:   [B, S] how many of the rows may look at each key
    columns: [B, V] key column of each candidate
    """

    weight: Tensor
    looks: Tensor
    columns: Tensor
    survivors: TokenMap

    def to(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """What each of `rows` gets, mean over heads [B, R], and how many may look at it [B, R]; 0 where not valid."""
        columns = self.survivors.physical(rows.slot) + self.weight.shape[-1] - self.survivors.size
        got, looks = self.weight.mean(1).gather(1, columns), self.looks.gather(1, columns)
        return got.masked_fill(~rows.valid, 0.0), looks.masked_fill(~rows.valid, 0)


class PromptRows:
    """Finds tokens of one call by what they are; nothing is computed before somebody asks."""

    def __init__(self, adapter: Adapter, call: Call) -> None:
        self._adapter = adapter
        self._call = call

    def text(self, where: Literal["after", "all"] = "after") -> Rows:
        """Text tokens of each row, see `View.text`."""
        return self._call.shared(f"text {where}", (), lambda: self._rows(self._text(where)))

    def last(self) -> Rows:
        """The last prompt token of each row [B, 1]."""
        slot = self._call.query_slot()[:, None]
        return Rows(slot, torch.ones_like(slot, dtype=torch.bool))

    def candidates_at(self, layer: int) -> Rows:
        """The visual tokens that were there when `layer` began; an observed `LayerInput(layer)`."""
        call = self._call
        assert call.original is not None
        then = call.inputs[layer][1]
        there = torch.zeros(call.rows, call.length + 1, dtype=torch.bool, device=call.device)
        there.scatter_(1, torch.where(then.valid, then.index, call.length), True)
        return Rows(call.original.slot, call.original.valid & there.gather(1, call.original.slot))

    def everything(self) -> Rows:
        """Every token of the prompt that is still present; no padding, nothing unverified."""
        present = self._call.present()
        return self._call.shared("everything", (present,), lambda: self._rows(self._prompt()))

    def probes(self, recent: float, random: float, seed: int) -> Rows:
        """A few rows that stand for all of them, see `View.probes`."""
        present = self._call.present()
        name = f"probes {recent} {random} {seed}"
        return self._call.shared(name, (present,), lambda: self._rows(self._probes(recent, random, seed)))

    def _rows(self, mask: Tensor) -> Rows:
        found = from_mask(mask)
        return Rows(found.index, found.valid)

    def _prompt(self) -> Tensor:
        """True at prompt tokens that are present [B, S]."""
        call = self._call
        place = torch.arange(call.length, device=call.device)
        present = call.present()
        here = torch.zeros(call.rows, call.length + 1, dtype=torch.bool, device=call.device)
        here.scatter_(1, torch.where(present.valid, present.index, call.length), True)
        return here[:, : call.length] & call.real() & (place <= call.query_slot()[:, None])

    def _text(self, where: str) -> Tensor:
        call = self._call
        place = torch.arange(call.length, device=call.device)
        real, adapter = call.real(), self._adapter
        # newlines of an image have placeholders too, and count as visual here: they are no words
        visual = find_ids(adapter, call.entry, real, (*adapter.tokens, *adapter.video_tokens))
        structural = find_ids(adapter, call.entry, real, adapter.structural)
        text = real & ~visual & ~structural & (place <= call.query_slot()[:, None])
        if where == "all":
            return text
        last = torch.where(visual, place, -1).amax(1, keepdim=True)
        return text & (place > last)

    def _probes(self, recent: float, random: float, seed: int) -> Tensor:
        """The last `recent` share of the prompt, and a random `random` share of what comes before."""
        prompt = self._prompt()
        chosen = torch.zeros(prompt.shape, dtype=torch.bool)
        for row, (number, mask) in enumerate(zip(self._call.prompt_hash(), prompt.cpu(), strict=True)):
            slots = mask.nonzero()[:, 0]
            tail = min(max(1, math.ceil(recent * len(slots))), len(slots))
            rest = len(slots) - tail
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {number}".encode()))
            drawn = torch.randperm(rest, generator=generator)[: min(math.ceil(random * len(slots)), rest)]
            chosen[row, slots[rest:]] = True
            chosen[row, slots[drawn]] = True
        return chosen.to(prompt.device)
