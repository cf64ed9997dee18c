"""Diffusion pipelines while plugins are attached: the only room that knows diffusers."""
