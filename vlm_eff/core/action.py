"""What a plugin may answer at a site. Only the runtime carries actions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """Keep these visual candidates and drop the others.

    index: [B, K] columns of the view's candidates, ascending in each row
    valid: [B, K] False where a row keeps fewer than K
    """

    index: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Merge(Keep):
    """Keep these candidates with new contents that stand for the dropped ones as well.

    hidden: [B, K, D] new hidden states of the kept candidates
    weight: [B, K] how many original tokens each one stands for
    """

    hidden: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Revive:
    """Bring dropped candidates back into a layer, in a call after the one that dropped them.

    chosen: [B, V] columns of the later view's candidates; each must be missing there
    """

    chosen: Tensor


@dataclass(frozen=True)
class Attend:
    """Compute the attention of one layer among these candidates and everything that is no candidate.

    The other candidates stay in the sequence, attend to nothing and are attended to by nobody in this layer.

    index: [B, K] columns of the view's candidates, ascending in each row
    valid: [B, K] False where fewer than K of a row take part
    """

    index: Tensor
    valid: Tensor


@dataclass(frozen=True)
class AttendBlocks:
    """Compute the attention of one layer only in blocks of queries and keys that a pattern lists; nobody is dropped.

    pattern: makes the lists when queries and keys are there, see `models/attend_blocks.py`
    """

    pattern: Any


@dataclass(frozen=True)
class Append:
    """Put new tokens right behind the last visual candidate of each row.

    Nothing before them sees them, each sees those before it, everything behind sees them. For Hugging Face they do not
    exist: token i of R stands on the logical position of the row's (V - R + i)-th candidate, its carrier.

    hidden: [B, R, D] the new tokens
    valid:  [B] False for rows that get none
    """

    hidden: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TakeOver:
    """Drop every candidate; appended tokens stay and own the places of their carriers from here on."""


@dataclass(frozen=True)
class Bias:
    """Add to the attention logits of the candidates' keys from this layer on; nothing is dropped.

    log_weight: [B, V] log of the share each candidate keeps, at most 0; gradients pass
    penalty:    [] what this decision adds to a training loss, or None
    """

    log_weight: Tensor
    penalty: Tensor | None = None


Action = Keep | Attend | AttendBlocks | Append | TakeOver | Bias
