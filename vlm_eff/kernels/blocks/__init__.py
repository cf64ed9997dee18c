"""Which blocks of queries look at which blocks of keys: the lists, and the rule inside blocks that are seen in part."""

from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule

__all__ = ["BlockLists", "Rule"]
