"""Visual entries alone, in as little as one bit."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_choice
from vlm_eff.kvcache.formats import Axes, CacheFormats, Tier, in_bits


@method(room="kvcache", acts="between forward passes", paper="arXiv:2502.14882")
def visual_quant(bits: int = 1, axis: Axes = ("channel", "channel"), outliers: float = 0.0) -> Plugin:
    """Store visual entries in very few bits by channel, and leave text as it is.

    Who      every visual entry
    Form     one group for each channel, over all visual entries of a row and head; at 1 bit the ranges of keys are
             shrunk to 0.5 and those of values to 0.3 about their middle
    When     after each prompt or turn
    Paper    CalibQuant, arXiv:2502.14882, section 3, and its code
    Differs  logits are not calibrated (the paper maps the visual ones of each row to a smaller range at up to 2 bits)
    Cost     none to decide; reading as in `kivi`
    Saves    KV cache of visual entries; realised. Bits a number: `bits` + 32 / visual entries in half precision, beside
             32 for each entry's place. For text in bits too, see `kivi` with `visual_bits`

    Args:
        bits: 1, 2, 4 or 8; 16 leaves visual entries as they are.
        axis: "channel" or "token" for keys and for values; a token group is the width of a head.
        outliers: fraction of each group that is exact.

    Raises:
        ConfigError: a width, axis or fraction that does not exist.
    """
    check_choice("bits", bits, (1, 2, 4, 8, 16))
    return CacheFormats("visual_quant", (Tier("exact", in_bits(bits, axis, None, outliers, shrunk=True)),))
