"""Plugins of diffusion pipelines: caches of denoiser work, merged tokens, samplers."""

from vlm_eff.diffusion.methods.adaptive_guidance import adaptive_guidance
from vlm_eff.diffusion.methods.cfg_cache import cfg_cache
from vlm_eff.diffusion.methods.deepcache import deepcache
from vlm_eff.diffusion.methods.first_block import first_block
from vlm_eff.diffusion.methods.fora import fora
from vlm_eff.diffusion.methods.forecast import forecast
from vlm_eff.diffusion.methods.guidance_interval import guidance_interval
from vlm_eff.diffusion.methods.sampler import sampler
from vlm_eff.diffusion.methods.taylorseer import taylorseer
from vlm_eff.diffusion.methods.tome_sd import tome_sd

__all__ = [
    "adaptive_guidance",
    "cfg_cache",
    "deepcache",
    "first_block",
    "fora",
    "forecast",
    "guidance_interval",
    "sampler",
    "taylorseer",
    "tome_sd",
]
