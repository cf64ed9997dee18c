"""Plugins of diffusion pipelines: caches of denoiser work, merged tokens, samplers."""

from vlm_eff.diffusion.methods.deepcache import deepcache
from vlm_eff.diffusion.methods.first_block import first_block
from vlm_eff.diffusion.methods.forecast import forecast
from vlm_eff.diffusion.methods.sampler import sampler

__all__ = ["deepcache", "first_block", "forecast", "sampler"]
