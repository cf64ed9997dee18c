"""Visual tokens: which ones are dropped, merged or pooled, where, and how many.

A method is a short function in `methods/` that composes score x select x reduce x schedule; `reducer.py` is the engine.
"""

from vlm_eff.tokens.budget import for_budget, settings_for_budget
from vlm_eff.tokens.methods.baselines import average_pool, random_drop, uniform_grid
from vlm_eff.tokens.methods.decoder.atp import atp
from vlm_eff.tokens.methods.decoder.atp_learned import atp_learned
from vlm_eff.tokens.methods.decoder.block_sparse import top_blocks, vertical_slash
from vlm_eff.tokens.methods.decoder.content import magnitude_drop, redundancy_drop
from vlm_eff.tokens.methods.decoder.cross_modal_window import cross_modal_window
from vlm_eff.tokens.methods.decoder.dart import dart
from vlm_eff.tokens.methods.decoder.fastv import fastv
from vlm_eff.tokens.methods.decoder.feather import feather
from vlm_eff.tokens.methods.decoder.lazyllm import lazyllm
from vlm_eff.tokens.methods.decoder.pyramiddrop import pyramiddrop
from vlm_eff.tokens.methods.decoder.sparsevlm import sparsevlm
from vlm_eff.tokens.methods.decoder.streaming_heads import streaming_heads
from vlm_eff.tokens.methods.decoder.v2drop import v2drop
from vlm_eff.tokens.methods.decoder.victor import victor
from vlm_eff.tokens.methods.decoder.vtw import vtw, withdrawal_layer
from vlm_eff.tokens.methods.decoder.zipvl_attention import zipvl_attention
from vlm_eff.tokens.methods.entry.adaptive_pool import adaptive_pool
from vlm_eff.tokens.methods.entry.cdpruner import cdpruner
from vlm_eff.tokens.methods.entry.divprune import divprune
from vlm_eff.tokens.methods.entry.fastervlm import fastervlm
from vlm_eff.tokens.methods.entry.hired import hired
from vlm_eff.tokens.methods.entry.prumerge import prumerge, prumerge_plus
from vlm_eff.tokens.methods.entry.visionzip import visionzip
from vlm_eff.tokens.methods.entry.vispruner import vispruner
from vlm_eff.tokens.methods.tower.evit import evit
from vlm_eff.tokens.methods.tower.pixelprune import pixelprune
from vlm_eff.tokens.methods.tower.tome import tome
from vlm_eff.tokens.methods.tower.zero_tprune import zero_tprune
from vlm_eff.tokens.methods.video.dycoke import dycoke
from vlm_eff.tokens.methods.video.evs import evs
from vlm_eff.tokens.methods.video.fastvid import fastvid
from vlm_eff.tokens.methods.video.prunevid import prunevid
from vlm_eff.tokens.methods.video.vcast import vcast

__all__ = [
    "adaptive_pool",
    "atp",
    "atp_learned",
    "average_pool",
    "cdpruner",
    "cross_modal_window",
    "dart",
    "divprune",
    "dycoke",
    "evit",
    "evs",
    "fastervlm",
    "fastv",
    "fastvid",
    "feather",
    "for_budget",
    "hired",
    "lazyllm",
    "magnitude_drop",
    "pixelprune",
    "prumerge",
    "prumerge_plus",
    "prunevid",
    "pyramiddrop",
    "random_drop",
    "redundancy_drop",
    "settings_for_budget",
    "sparsevlm",
    "streaming_heads",
    "tome",
    "top_blocks",
    "uniform_grid",
    "v2drop",
    "vcast",
    "vertical_slash",
    "victor",
    "visionzip",
    "vispruner",
    "vtw",
    "withdrawal_layer",
    "zero_tprune",
    "zipvl_attention",
]
