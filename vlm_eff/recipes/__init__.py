"""Methods that act in several rooms: compositions of plugins, and no code of their own on tensors."""

from vlm_eff.recipes.zipvl import zipvl

__all__ = ["zipvl"]
