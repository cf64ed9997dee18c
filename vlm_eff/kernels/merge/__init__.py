"""Sums and means of tokens that become one, in a fixed order."""

from vlm_eff.kernels.merge.op import merge_tokens, sum_into

__all__ = ["merge_tokens", "sum_into"]
