"""Attention only among chosen tokens, with gather and scatter inside."""

from vlm_eff.kernels.selected_attention.op import selected_attention

__all__ = ["selected_attention"]
