"""Plugins of diffusion pipelines: caches of denoiser work, merged tokens, samplers."""

from vlm_eff.diffusion.methods.forecast import forecast

__all__ = ["forecast"]
