"""Rows that stay, of several tensors in one launch."""

from vlm_eff.kernels.compact.op import compact, compact_heads

__all__ = ["compact", "compact_heads"]
