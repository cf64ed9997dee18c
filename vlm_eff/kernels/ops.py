"""All operations of this room in one place: `from vlm_eff.kernels.ops import window_scores, why_not`."""

from vlm_eff.kernels.bipartite_match import best_partner
from vlm_eff.kernels.column_scores import column_scores
from vlm_eff.kernels.compact import compact, compact_heads
from vlm_eff.kernels.dispatch import Backend, operations, prefer, why_not
from vlm_eff.kernels.merge import merge_tokens, sum_into
from vlm_eff.kernels.packed_decode import packed_decode
from vlm_eff.kernels.quantise import quantise
from vlm_eff.kernels.selected_attention import selected_attention
from vlm_eff.kernels.sparse_attention import sparse_attention
from vlm_eff.kernels.window_scores import window_lse, window_scores

__all__ = [
    "Backend",
    "best_partner",
    "column_scores",
    "compact",
    "compact_heads",
    "merge_tokens",
    "operations",
    "packed_decode",
    "prefer",
    "quantise",
    "selected_attention",
    "sparse_attention",
    "sum_into",
    "why_not",
    "window_lse",
    "window_scores",
]
