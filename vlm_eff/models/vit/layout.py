"""How a tower lays its tokens out: one image a batch row, or all images one after the other; padded rows for us."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Images as rows of a batch [I, T, D]; `real` [I, T] is False where an image has fewer than T tokens (None: never).

    Such padding is computed like a token and hidden from attention.
    """

    images: int
    tokens: int
    real: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each image that are computed, padding included."""
        return [self.tokens] * self.images

    @property
    def valid(self) -> Tensor | None:
        """True where a row holds a token [I, T]; None: everywhere."""
        return self.real

    def pad(self, hidden: Tensor) -> Tensor:
        """The tower's own tensor is padded already."""
        return hidden

    def pack(self, padded: Tensor) -> Tensor:
        """The same back."""
        return padded


@dataclass(frozen=True)
class Packed:
    """Images one after the other in one sequence [N, D], or [1, N, D] when `batched`."""

    counts: tuple[int, ...]
    batched: bool
    device: torch.device

    @property
    def lengths(self) -> list[int]:
        """Tokens of each image."""
        return list(self.counts)

    @cached_property
    def valid(self) -> Tensor | None:
        """True where a padded row holds a token [I, T]."""
        counts = torch.tensor(self.counts, device=self.device)
        return torch.arange(max(self.counts), device=self.device) < counts[:, None]

    @cached_property
    def _places(self) -> Tensor:
        """Place in the sequence of every column of the padded rows [I, T]; the last token's where there is none."""
        counts = torch.tensor(self.counts, device=self.device)
        start = (counts.cumsum(0) - counts)[:, None]
        column = torch.arange(max(self.counts), device=self.device)
        return (start + column).clamp(max=sum(self.counts) - 1)

    @cached_property
    def _columns(self) -> Tensor:
        """Place in the flattened padded rows of every token [N]."""
        width = max(self.counts)
        parts = [torch.arange(count, device=self.device) + row * width for row, count in enumerate(self.counts)]
        return torch.cat(parts)

    def pad(self, hidden: Tensor) -> Tensor:
        """[N, ...] or [1, N, ...] to padded rows [I, T, ...]."""
        flat = hidden[0] if self.batched else hidden
        return flat[self._places]

    def pack(self, padded: Tensor) -> Tensor:
        """Padded rows [I, T, ...] to what the tower knows."""
        flat = padded.flatten(0, 1)[self._columns]
        return flat[None] if self.batched else flat


Layout = Rows | Packed
