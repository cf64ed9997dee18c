"""Plugins of diffusion pipelines: caches of denoiser work, merged tokens, samplers."""

from vlm_eff.diffusion.calibrate import calibrate_magcache, calibrate_teacache
from vlm_eff.diffusion.methods.adaptive_guidance import adaptive_guidance
from vlm_eff.diffusion.methods.cfg_cache import cfg_cache
from vlm_eff.diffusion.methods.deepcache import deepcache
from vlm_eff.diffusion.methods.easycache import easycache
from vlm_eff.diffusion.methods.fastercache import fastercache
from vlm_eff.diffusion.methods.first_block import first_block
from vlm_eff.diffusion.methods.fora import fora
from vlm_eff.diffusion.methods.forecast import forecast
from vlm_eff.diffusion.methods.guidance_interval import guidance_interval
from vlm_eff.diffusion.methods.magcache import magcache
from vlm_eff.diffusion.methods.pab import pab
from vlm_eff.diffusion.methods.prompt_cache import prompt_cache
from vlm_eff.diffusion.methods.sampler import sampler
from vlm_eff.diffusion.methods.taylorseer import taylorseer
from vlm_eff.diffusion.methods.teacache import teacache
from vlm_eff.diffusion.methods.tgate import tgate
from vlm_eff.diffusion.methods.tome_sd import tome_sd
from vlm_eff.diffusion.prompt_store import PromptStore

__all__ = [
    "PromptStore",
    "adaptive_guidance",
    "calibrate_magcache",
    "calibrate_teacache",
    "cfg_cache",
    "deepcache",
    "easycache",
    "fastercache",
    "first_block",
    "fora",
    "forecast",
    "guidance_interval",
    "magcache",
    "pab",
    "prompt_cache",
    "sampler",
    "taylorseer",
    "teacache",
    "tgate",
    "tome_sd",
]
