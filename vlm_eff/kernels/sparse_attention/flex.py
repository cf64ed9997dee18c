"""The same lists in FlexAttention, compiled; and through it in FlashAttention-4."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlm_eff.kernels.blocks import BlockLists, Rule


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: BlockLists,
    rule: Rule,
    *,
    scaling: float,
    softcap: float | None = None,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """FlexAttention over the four tensors as they are; compiled once for all shapes."""
    from torch.nn.attention.flex_attention import AuxRequest, BlockMask

    lengths = (query.shape[2], key.shape[2])
    mask = BlockMask.from_kv_blocks(
        lists.part_count,
        lists.part_index,
        lists.full_count,
        lists.full_index,
        BLOCK_SIZE=(lists.rows, lists.columns),
        mask_mod=_pair_test(rule, query.shape[0], *lengths, query.device),
        seq_lengths=lengths,
        compute_q_blocks=False,  # for the backward pass alone
    )
    made = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap, query.device),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=kernel_options,
        return_aux=AuxRequest(lse=True) if return_lse else None,
    )
    return (made[0], made[1].lse) if return_lse else made


def why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: BlockLists,
    rule: Rule,
    *,
    return_lse: bool = False,
    **_: Any,
) -> str | None:
    """Why FlexAttention cannot take these arguments; None when it can."""
    if lists.column_count is not None:
        return "FlexAttention has no lists of single keys"
    if query.device.type == "cpu" and return_lse:
        return "FlexAttention on a CPU returns no log-sum-exp"
    if query.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"FlexAttention is not compiled for {query.dtype}"
    return None


def with_flash(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, Tensor]:
    """FlexAttention that hands lists and rule to FlashAttention-4 (its `block_sparse_tensors` and `mask_mod`)."""
    return sparse_attention(*args, **kwargs, kernel_options={"BACKEND": "FLASH"})


def why_not_flash(query: Tensor, *args: Any, **kwargs: Any) -> str | None:
    """Why FlashAttention-4 cannot take these arguments; None when nothing is known to speak against it."""
    try:
        installed = importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:
        installed = False
    if not installed:
        return "flash_attn.cute is not installed (pip install flash-attn-4)"
    if query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) < (9, 0):
        return "FlashAttention-4 wants an NVIDIA device of compute capability 9.0 or above"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention-4 reads float16 and bfloat16, not {query.dtype}"
    return why_not(query, *args, **kwargs)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # with sizes that are fixed it would compile anew for each length of a prompt, and give up after eight
    return torch.compile(flex_attention, dynamic=True)


def _cap(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    # a number that the function closes over is no tensor, and with sizes that vary it cannot be compiled in
    cap = torch.full((), softcap, device=device)

    def score(score: Tensor, b: Tensor, h: Tensor, row: Tensor, j: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score


def _pair_test(
    rule: Rule, batch: int, query_length: int, key_length: int, device: torch.device
) -> Callable[..., Tensor]:
    """The rule for one pair, as FlexAttention asks for it: two comparisons.

    All numbers are in tensors of a size that does not vary. Compiled for the CPU, FlexAttention of PyTorch 2.15 takes
    other sizes and numbers that the test needs for loop variables of its own: with one it may not compile, with several
    its answers were wrong.
    """
    places = rule.places(query_length, key_length, device=device)
    shown, near, reach, behind = (_fixed(x, key_length, batch) for x in places)

    def seen(b: Tensor, h: Tensor, row: Tensor, j: Tensor) -> Tensor:
        return shown[b, j] <= reach[b, row]

    def seen_near(b: Tensor, h: Tensor, row: Tensor, j: Tensor) -> Tensor:
        return (shown[b, j] <= reach[b, row]) & (near[b, j] > behind[b, row])

    return seen_near if rule.local else seen


def _fixed(places: Tensor, key_length: int, batch: int) -> Tensor:
    """Places [B | 1, Q | S] for each row of the batch, filled up to a power of two: few sizes, so few compilations."""
    size = 1 << max(12, (key_length - 1).bit_length())
    padded = functional.pad(places.expand(batch, -1), (0, size - places.shape[1]))
    torch._dynamo.mark_static(padded)
    return padded
