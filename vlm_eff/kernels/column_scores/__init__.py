"""What keys get from all rows of attention."""

from vlm_eff.kernels.column_scores.op import column_scores

__all__ = ["column_scores"]
