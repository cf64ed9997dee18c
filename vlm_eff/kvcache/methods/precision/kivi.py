"""KIVI: keys by channel, values by token, in groups that are quantised once."""

from __future__ import annotations

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_choice, check_whole
from vlm_eff.kvcache.formats import Axes, CacheFormats, Tier, in_bits


@method(room="kvcache", acts="between forward passes", paper="arXiv:2402.02750")
def kivi(
    bits: int = 2,
    group: int = 32,
    residual: int = 128,
    recent: int = 0,
    text_axis: Axes = ("channel", "token"),
    visual_bits: int | None = None,
    visual_axis: Axes | None = None,
    outliers: float = 0.0,
) -> Plugin:
    """Store keys in few bits by channel and values by token, in groups that are quantised once and never again.

    Who      every entry, oldest first, in multiples of `residual` of each row and head; the rest stays exact
    Form     asymmetric groups of `group` numbers: of one channel's keys, of one entry's values
    When     after each prompt or turn, then each time that `residual` more entries are there
    Paper    KIVI, arXiv:2402.02750, section 3, and its code
    Differs  keys and values leave together, by the law of the keys: between none and `residual` - 1 of the newest
             values are exact, where KIVI keeps exactly the last `residual`. `recent` gives that window back, to both.
             Groups never hold padding, so that a row of a batch is stored as it would be alone (official issue 18)
    Cost     each decode step attends to the codes as they lie (`kernels.packed_decode`), one segment after the other;
             with outliers they are read back. On a CPU that mostly takes longer than a full cache: memory is saved
    Saves    KV cache; realised. Bits a number: `bits` + 32 / `group` in half precision, and 32 for each place

    Args:
        bits: 1, 2, 4, 8, or 16 for as they are.
        group: numbers of a group; longer ones than a head is wide have its width.
        residual: entries that are packed at once, a multiple of `group`.
        recent: the last tokens that stay exact in any case.
        text_axis: "channel" or "token" for keys and for values.
        visual_bits: of visual entries where they are to be stored differently: then they are packed apart from the
            text and all at once, at 1 bit with ranges shrunk as in CalibQuant, arXiv:2502.14882. 0 evicts them.
        visual_axis: the same as `text_axis` for visual entries; ("channel", "channel") is what VidKV,
            arXiv:2503.16257, finds for videos.
        outliers: fraction of each group that is exact, as in KVQuant, arXiv:2401.18079.

    Raises:
        ConfigError: a width, axis or fraction that does not exist, a residual that is no multiple of the group.
    """
    check_choice("bits", bits, (1, 2, 4, 8, 16))
    check_whole("group", group)
    check_whole("residual", residual)
    if residual % group:
        got = f"group={group} and residual={residual}"
        raise ConfigError(explain(got, "a residual of one or more whole groups", "Choose a multiple of the group"))
    text = in_bits(bits, text_axis, group, outliers)
    width = bits if visual_bits is None else visual_bits
    visual = in_bits(width, visual_axis or text_axis, group, outliers, shrunk=visual_bits is not None)
    return CacheFormats("kivi", (Tier(text, visual),), block=residual, every=residual, recent=recent)
