"""Which blocks of queries look at which blocks of keys: the lists, the rule inside blocks that are seen in part, and
what makes both: the structured cross-modal mask, streaming heads, vertical-slash heads, the best blocks."""

from vlm_eff.kernels.blocks.cross_modal import cross_modal
from vlm_eff.kernels.blocks.lists import BlockLists
from vlm_eff.kernels.blocks.rule import Rule
from vlm_eff.kernels.blocks.streaming import streaming
from vlm_eff.kernels.blocks.top_blocks import top_blocks
from vlm_eff.kernels.blocks.vertical_slash import vertical_slash

__all__ = ["BlockLists", "Rule", "cross_modal", "streaming", "top_blocks", "vertical_slash"]
