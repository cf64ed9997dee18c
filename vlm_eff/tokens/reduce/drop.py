"""Leave the other tokens out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from vlm_eff.core.action import Action, Keep
from vlm_eff.core.config import part
from vlm_eff.importance import keep as budget
from vlm_eff.importance.select import from_mask
from vlm_eff.models.view import View


class Reduce(Protocol):
    """Turns the choice of a stage into an action."""

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action | None:
        """Reduce the candidates of `view`; `chosen` [B, V] marks those that stay, None when the stage has no score.

        Nothing (None) where there is nothing to change.
        """
        ...


@runtime_checkable
class RankedReduce(Reduce, Protocol):
    """A reduction that looks at the scores of those that go, and lets some of them stay in another form."""

    def ranked(self, view: View, chosen: Tensor, scores: Tensor) -> Action:
        """Reduce the candidates; `chosen` [B, V] stay as they are, `scores` [B, V] rank the others."""
        ...

    def added(self, dropped: float) -> float:
        """Tokens that come back when `dropped` go."""
        ...


@part
@dataclass(frozen=True)
class Drop:
    """Dropped tokens are gone from this layer on; the kept ones stay as they are."""

    def __call__(self, view: View, keep: budget.Keep, chosen: Tensor | None) -> Action:
        assert chosen is not None
        selection = from_mask(chosen)
        return Keep(selection.index, selection.valid)
