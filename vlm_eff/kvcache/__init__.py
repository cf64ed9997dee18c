"""The KV cache: which entries stay, in how many bits, for how long.

A method is a short function in `methods/` that composes score x budget x protection x treatment; `policy.py` is the
engine.
"""

from vlm_eff.kvcache.methods.baselines import random_evict
from vlm_eff.kvcache.methods.eviction.adakv import adakv
from vlm_eff.kvcache.methods.eviction.entropy import entropy, entropy_regularised
from vlm_eff.kvcache.methods.eviction.h2o import h2o
from vlm_eff.kvcache.methods.eviction.hessian import hessian
from vlm_eff.kvcache.methods.eviction.look_m import look_m
from vlm_eff.kvcache.methods.eviction.meda import meda
from vlm_eff.kvcache.methods.eviction.prefixkv import prefixkv
from vlm_eff.kvcache.methods.eviction.pyramidkv import pyramidkv
from vlm_eff.kvcache.methods.eviction.scissorhands import scissorhands
from vlm_eff.kvcache.methods.eviction.sensitivity import sensitivity
from vlm_eff.kvcache.methods.eviction.snapkv import snapkv
from vlm_eff.kvcache.methods.eviction.streaming_llm import streaming_llm
from vlm_eff.kvcache.methods.eviction.tova import tova
from vlm_eff.kvcache.methods.eviction.vl_cache import vl_cache
from vlm_eff.kvcache.methods.precision.kivi import kivi
from vlm_eff.kvcache.methods.precision.saliency_precision import saliency_precision
from vlm_eff.kvcache.methods.precision.visual_quant import visual_quant
from vlm_eff.kvcache.methods.precision.zipvl_kv import zipvl_kv
from vlm_eff.kvcache.methods.representation.cross_modal_low_rank import cross_modal_low_rank
from vlm_eff.kvcache.methods.representation.modality_logits import modality_logits

__all__ = [
    "adakv",
    "cross_modal_low_rank",
    "entropy",
    "entropy_regularised",
    "h2o",
    "hessian",
    "kivi",
    "look_m",
    "meda",
    "modality_logits",
    "prefixkv",
    "pyramidkv",
    "random_evict",
    "saliency_precision",
    "scissorhands",
    "sensitivity",
    "snapkv",
    "streaming_llm",
    "tova",
    "visual_quant",
    "vl_cache",
    "zipvl_kv",
]
