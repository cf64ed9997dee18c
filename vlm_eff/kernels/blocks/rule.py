"""The rule that decides, pair by pair, what is seen inside a block that is seen in part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain


@dataclass(frozen=True)
class Rule:
    """Who sees whom: query i sees key j if every test that is there lets the pair pass.

    Rows are absolute: of Q queries before S keys, row r of the call is position i = r + (S - Q).

        causal:        j <= i
        first:         j >= first, per row of the batch
        text, window:  text[i] or text[j] or j < first + sinks or i - j < window

    causal: whether later keys are hidden.
    first:  [B] int32, the first key that is no left padding (None: 0).
    text:   [B, S] bool or uint8, 1 where a token is text: such tokens see and are seen by everything (None: there is
            no text). With neither `text` nor `window` the last test is not made.
    sinks:  how many keys, from `first` on, everybody sees.
    window: how many keys up to its own a query sees (None: text and sinks alone). It is one-sided: later keys pass.

    Example: causal, three visual tokens after one of text, `window=1`: each visual token sees the text and itself.

    Raises:
        InputError: sinks or window out of range, tensors of another shape or type, sinks that nothing uses.
    """

    causal: bool = True
    first: Tensor | None = None
    text: Tensor | None = None
    sinks: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        if self.sinks < 0 or (self.window is not None and self.window < 1):
            got = f"sinks={self.sinks}, window={self.window}"
            raise InputError(explain(got, "sinks >= 0, window >= 1 or None", "Give counts of keys"))
        if self.sinks and not self.local:
            got = f"sinks={self.sinks} without text and without window"
            raise InputError(explain(got, "sinks beside `text` or `window`", "Leave the sinks out: all keys are seen"))
        if self.first is not None and (self.first.dim() != 1 or self.first.dtype != torch.int32):
            got = f"first of shape {list(self.first.shape)} and type {self.first.dtype}"
            raise InputError(explain(got, "int32 [B]", "Give the number of padded keys of each row"))
        if self.text is not None and (self.text.dim() != 2 or self.text.dtype not in (torch.bool, torch.uint8)):
            got = f"text of shape {list(self.text.shape)} and type {self.text.dtype}"
            raise InputError(explain(got, "bool or uint8 [B, S]", "Give one truth value for each key"))

    @property
    def local(self) -> bool:
        """Whether the test by text, sinks and window is made at all."""
        return self.text is not None or self.window is not None

    def check(self, batch: int, key_length: int) -> None:
        """Raise InputError unless the tensors fit `batch` rows (or 1, for all) and `key_length` keys."""
        for name, tensor, tail in (("first", self.first, []), ("text", self.text, [key_length])):
            if tensor is not None and list(tensor.shape) not in ([batch, *tail], [1, *tail]):
                got = f"{name} of shape {list(tensor.shape)} in a call of {batch} rows and {key_length} keys"
                raise InputError(explain(got, f"{[batch, *tail]}", "Give one entry for each row, and each of its keys"))

    def allowed(
        self,
        query_length: int,
        key_length: int,
        *,
        begin: int = 0,
        end: int | None = None,
        keys: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """The rule as a mask [B | 1, 1, end - begin, S], True where the query sees the key.

        begin, end: only these of the Q rows (default: all). keys: [N] int64, only these of the S keys.
        device: where, if the rule itself holds no tensor. Cost: a byte a pair; call it for a chunk of rows at a time.
        """
        places = self.places(query_length, key_length, device=device)
        shown, near = (x if keys is None else x[:, keys] for x in places[:2])
        reach, behind = (x[:, begin:end, None] for x in places[2:])
        seen = shown[:, None] <= reach
        if self.local:
            seen = seen & (near[:, None] > behind)
        return seen[:, None]

    def places(
        self, query_length: int, key_length: int, *, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rule as two comparisons a pair, shown[j] <= reach[i] and near[j] > behind[i].

        What all may see, or nobody, stands at a place where the comparison says so. Returns shown, near [B | 1, S] and
        reach, behind [B | 1, Q], int32; the second comparison is for rules that are `local`.
        """
        device = next((t.device for t in (self.first, self.text) if t is not None), device)
        far, shift = 1 << 30, key_length - query_length
        j = torch.arange(key_length, dtype=torch.int32, device=device)[None]
        i = j[:, shift:]
        first = torch.zeros_like(j[:, :1]) if self.first is None else self.first[:, None]
        special = j < first + self.sinks
        behind = torch.full_like(i, far - 1) if self.window is None else i - self.window
        if self.text is not None:
            text = self.text.bool()
            special, behind = special | text, behind.where(~text[:, shift:], -1)
        reach = i if self.causal else torch.full_like(i, far - 1)
        return j.where(j >= first, far), j.where(~special, far), reach, behind
