"""ZipVL whole: sparse attention in the prefill and mixed precision in the cache, from one look at the attention."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.recipe import Recipe
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_several, check_whole
from vlm_eff.kvcache.allot import Attended
from vlm_eff.kvcache.formats import Axes
from vlm_eff.kvcache.methods.precision.zipvl_kv import PAIR, mixed, two_tiers
from vlm_eff.tokens import zipvl_attention


@method(room="recipes", acts="inside the attention of decoder layers, between forward passes", paper="arXiv:2410.08584")
def zipvl(
    keep_mass: float = 0.975,
    high_bits: int = 4,
    low_bits: int = 2,
    recent: float = 0.05,
    random: float = 0.05,
    every: int | None = 100,
    seed: int = 0,
    text_axis: Axes = ("channel", "token"),
    visual_bits: Sequence[int] | None = None,
    visual_axis: Axes | None = None,
    outliers: float = 0.0,
) -> Recipe:
    """Attend among the tokens that hold most of each layer's attention, and store their entries in more bits.

    Of       `zipvl_attention`, then the cache of `zipvl_kv`: the entries that took part in a layer's attention are its
             important ones. Nothing is observed twice
    Paper    ZipVL, arXiv:2410.08584, version 1
    Differs  as in both parts; all heads of a layer share one set, and text is always important. Prompts and turns
             without pictures are attended to in full and stored in high bits
    Cost     as `zipvl_attention`, then one query row kept a step
    Saves    attention FLOPs of the prefill, and KV cache; realised

    Args:
        keep_mass: fraction (0, 1] of the attention that the chosen tokens hold; the paper uses 0.96 and 0.975.
        high_bits: of entries that took part: 1, 2, 4, 8, or 16 for as they are.
        low_bits: of the others; 0 evicts them.
        recent: fraction of the prompt's last tokens among the probe rows.
        random: fraction of the prompt drawn as further probes.
        every: generated tokens that are packed at once, by the last token's attention; None leaves them exact.
        seed: of the draw.
        text_axis: "channel" or "token" for keys and for values.
        visual_bits: high and low bits of visual entries, where they differ.
        visual_axis: the same as `text_axis` for visual entries.
        outliers: fraction of each group that is exact.

    Raises:
        ConfigError: a fraction, width or axis that does not exist.
    """
    check_whole("seed", seed, 0)
    pairs = (high_bits, low_bits) if visual_bits is None else check_several("visual_bits", visual_bits, PAIR)
    tiers = two_tiers((high_bits, low_bits), pairs, text_axis, visual_axis, outliers)
    attention = zipvl_attention(keep_mass, recent=recent, random=random, seed=seed)
    return Recipe("zipvl", (attention, mixed("zipvl_kv", tiers, Attended(), keep_mass, every)))
