"""Keeping some rows of several tensors, by one list of places for all of them."""

from __future__ import annotations

from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.compact import fast, launch, reference
from vlm_eff.kernels.dispatch import Backend, Forms

_FORMS = Forms(
    "compact",
    reference=reference.compact,
    torch=fast.compact,
    triton=launch.compact,
    limits={"triton": launch.limits},
)


def compact(tensors: list[Tensor], index: Tensor, *, backend: Backend = "auto") -> list[Tensor]:
    """Keep the rows `index` of every tensor: what follows a sequence, brought to the tokens that are left.

    tensors: each [B or 1, L, ...] and of any type: hidden states, rotary tables, position ids, a mask of columns; L may
             differ. Positions with three axes [3, B, L] are given as three tensors [B, L]
    index:   [B, K] int64 places to keep, in any order and as often as wanted, each inside every L (a kernel reads
             whatever lies there, the forms of PyTorch raise IndexError). Or [B, H, K]: then each tensor is
             [B, H, L, ...], and every head keeps its own rows

    Returns new tensors [B, K, ...] or [B, H, K, ...], one for each, contiguous. Contents are moved, not computed.

    The kernel moves all tensors in one launch and reads one number of the index a row; `torch.gather` reads one for
    each number that it moves (8 bytes for 2). The form of PyTorch copies whole rows with `index_select`. Cost: rows
    kept, read and written once; below about 20 MB a launch costs more than the copy, so this saves tens of
    microseconds a drop layer on a GPU.

    Raises:
        InputError: shapes that do not belong together.
        CapabilityError: a backend that cannot run on these arguments.
        ConfigError: no such backend.
    """
    if index.dim() not in (2, 3):
        raise InputError(explain(f"an index of {index.dim()} dimensions", "[B, K] or [B, H, K]", "Name rows to keep"))
    for tensor in tensors:
        lead = tensor.shape[: index.dim() - 1]
        fits = all(have in (1, want) for have, want in zip(lead, index.shape[:-1], strict=False))
        if tensor.dim() < index.dim() or not fits:
            raise InputError(
                explain(
                    f"a tensor {tuple(tensor.shape)} for index {tuple(index.shape)}",
                    "[B or 1, L, ...] for [B, K], or [B, H, L, ...] for [B, H, K]",
                    "Move the axis of the sequence behind those of the index",
                )
            )
    made: list[Tensor] = _FORMS.run(backend, tensors, index)
    return made


def compact_heads(key: Tensor, value: Tensor, index: Tensor, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Keep entries `index` [B, Hkv, K] of key and value [B, Hkv, S, Dh], every head its own; see `compact`."""
    kept_key, kept_value = compact([key, value], index, backend=backend)
    return kept_key, kept_value
