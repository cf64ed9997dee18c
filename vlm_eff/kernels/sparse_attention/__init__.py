"""Attention in which each block of queries sees only the blocks of keys that are listed for it."""

from vlm_eff.kernels.sparse_attention.op import sparse_attention

__all__ = ["sparse_attention"]
