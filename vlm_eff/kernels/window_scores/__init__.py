"""What keys get from a few rows of attention."""

from vlm_eff.kernels.window_scores.op import window_lse, window_scores
from vlm_eff.kernels.window_scores.visible import Sight, visible_keys, visible_rows

__all__ = ["Sight", "visible_keys", "visible_rows", "window_lse", "window_scores"]
