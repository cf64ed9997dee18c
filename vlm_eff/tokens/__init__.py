"""Visual tokens: which ones are dropped, merged or pooled, where, and how many.

A method is a short function in `methods/` that composes score x select x reduce x schedule; `reducer.py` is the engine.
"""

from vlm_eff.tokens.budget import for_budget
from vlm_eff.tokens.methods.baselines import average_pool, random_drop, uniform_grid
from vlm_eff.tokens.methods.decoder.fastv import fastv
from vlm_eff.tokens.methods.decoder.feather import feather
from vlm_eff.tokens.methods.decoder.pyramiddrop import pyramiddrop

__all__ = ["average_pool", "fastv", "feather", "for_budget", "pyramiddrop", "random_drop", "uniform_grid"]
