"""The most similar partner of every token, without the matrix of similarities."""

from vlm_eff.kernels.bipartite_match.op import best_partner

__all__ = ["best_partner"]
