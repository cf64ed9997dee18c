"""What a user would run instead: each backend of PyTorch's attention, FlexAttention, FlashAttention-4."""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlm_eff.kernels.blocks import BlockLists

from .timing import Call, fatal

_BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Rivals:
    """Ways to do the same thing, by name; missing: those that do not take these arguments here, and why."""

    calls: dict[str, Call] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def that_run(cls, named: dict[str, Call]) -> Rivals:
        """Try each of them once."""
        made = cls()
        for name, call in named.items():
            reason = why_not(call)
            if reason is None:
                made.calls[name] = call
            else:
                made.missing[name] = reason
        return made

    def __or__(self, other: Rivals) -> Rivals:
        return Rivals(self.calls | other.calls, self.missing | other.missing)

    def renamed(self, suffix: str) -> Rivals:
        """The same with a suffix to each name."""
        return Rivals(*({name + suffix: one for name, one in part.items()} for part in (self.calls, self.missing)))


def why_not(call: Call) -> str | None:
    """Why a call does not run here; None if it does. An error that the device does not survive is raised."""
    try:
        with warnings.catch_warnings():
            # a backend that is forced and cannot says so in warnings, then raises
            warnings.simplefilter("ignore")
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    except Exception as error:
        if fatal(error):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def sdpa(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, math: bool = False) -> Rivals:
    """Dense attention by each backend that takes these tensors; math: also the one that builds the matrix."""
    grouped = query.shape[1] != key.shape[1]
    made = Rivals()
    for name, backend in _BACKENDS.items():
        if backend is SDPBackend.MATH and not math:
            continue

        def call(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=grouped)

        made |= Rivals.that_run({name: call})
    return made


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


@functools.cache
def _flex(compile: bool) -> Any:
    # one function and one mask for all calls: every new one is compiled anew, and after eight of them never again
    module = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(module.flex_attention, dynamic=False) if compile else module.flex_attention


def flex(query: Tensor, key: Tensor, value: Tensor, lists: BlockLists, *, compile: bool = True) -> Rivals:
    """Compiled FlexAttention over the same four lists, causal inside blocks that are listed in part."""
    mask = importlib.import_module("torch.nn.attention.flex_attention").BlockMask.from_kv_blocks(
        lists.part_count,
        lists.part_index,
        lists.full_count,
        lists.full_index,
        BLOCK_SIZE=(lists.rows, lists.columns),
        mask_mod=_causal,
        seq_lengths=(query.shape[2], key.shape[2]),
    )
    grouped = query.shape[1] != key.shape[1]
    return Rivals.that_run({"flex": lambda: _flex(compile)(query, key, value, block_mask=mask, enable_gqa=grouped)})


def fa4(query: Tensor, key: Tensor, value: Tensor, lists: BlockLists) -> Rivals:
    """FlashAttention-4, dense and over the same lists, where it can be imported. Written from its documentation."""
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in (query, key, value))

    def dense() -> Any:
        return importlib.import_module("flash_attn.cute").flash_attn_func(q, k, v, causal=True)

    def listed() -> Any:
        tensors = importlib.import_module("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch(
            mask_block_cnt=lists.part_count,
            mask_block_idx=lists.part_index,
            full_block_cnt=lists.full_count,
            full_block_idx=lists.full_index,
        )
        module = importlib.import_module("flash_attn.cute")
        return module.flash_attn_func(q, k, v, causal=True, block_sparse_tensors=tensors)

    return Rivals.that_run({"fa4 dense": dense, "fa4 lists": listed})
