"""Tokens that become one: their sum, and their mean by size."""

from __future__ import annotations

from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.merge import fast, launch, reference

_SUM = Forms(
    "sum_into",
    reference=reference.sum_into,
    torch=fast.sum_into,
    triton=launch.sum_into,
    limits={"triton": launch.limits},
)
_MERGE = Forms(
    "merge_tokens",
    reference=reference.merge_tokens,
    torch=fast.merge_tokens,
    triton=launch.merge_tokens,
    limits={"triton": launch.limits},
)


def merge_tokens(
    hidden: Tensor, into: Tensor, count: int, size: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Average the tokens that go into one place, each by how many tokens it stands for (ToMe, arXiv:2210.09461).

    hidden: [N, T, C] floating
    into:   [N, T] int64 place of each token among the `count` that are left; a place outside of them: nowhere
    size:   [N, T] float32 (or float64) of at least 0, original tokens that each stands for; None: one each
    Returns (merged [N, count, C] in the type of `hidden`, size [N, count] in that of `size`). Sizes are conserved:
    those of a place add up. A place with a total size of 0 holds zeros. A token alone in its place is unchanged bit
    for bit. Contents of tokens that go somewhere have to be finite, whatever their size.

    Each token is weighed with its share of the size of its place and added in the order of the tokens, in float32
    (float64 if it came so), so that equal input gives equal output, bit for bit, and on a GPU too: no float is added
    atomically, as official code does with `scatter_reduce`.
    Cost: 2 N T C FLOPs; N (T + count) C numbers read and written, and a sort of [N, T] integers on a GPU.

    Raises:
        InputError: shapes or types do not fit.
        CapabilityError: the form asked for cannot run here.
    """
    _check(hidden, into, count, size)
    return _MERGE.run(backend, hidden, into, count, size)  # type: ignore[no-any-return]


def sum_into(x: Tensor, into: Tensor, count: int, weight: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Add up the tokens that go into one place, in a fixed order.

    x:      [N, T, C] floating; into, count: as in `merge_tokens`
    weight: [N, T] float32 (or float64) factor of each token; None: 1
    Returns the sums [N, count, C] in the type of `x`, made in float32 (float64 if it came so); 0 where nobody goes.
    Cost and errors: as `merge_tokens`.
    """
    _check(x, into, count, weight)
    return _SUM.run(backend, x, into, count, weight)  # type: ignore[no-any-return]


def _check(x: Tensor, into: Tensor, count: int, weight: Tensor | None) -> None:
    if x.dim() != 3 or not x.is_floating_point():
        got = f"tokens {list(x.shape)} {x.dtype}"
        raise InputError(explain(got, "floating numbers [N, T, C]", "Give rows of tokens"))
    if into.shape != x.shape[:2] or into.is_floating_point() or count < 0:
        got = f"into {list(into.shape)} {into.dtype}, count {count}, for tokens {list(x.shape)}"
        raise InputError(explain(got, "an integer [N, T] for each token, and a number of places", "Give both"))
    if weight is not None and (weight.shape != into.shape or not weight.is_floating_point()):
        got = f"sizes or weights {list(weight.shape)} {weight.dtype} for tokens {list(x.shape)}"
        raise InputError(explain(got, "a floating number for each token [N, T]", "Give one for each"))
