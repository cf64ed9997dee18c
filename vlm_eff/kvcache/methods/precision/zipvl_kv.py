"""The cache of ZipVL: what gets most of the attention in more bits."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.cache import CacheRows
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_choice, check_several, check_whole
from vlm_eff.kvcache.allot import ByMass
from vlm_eff.kvcache.formats import Allotment, Axes, CacheFormats, Tier, in_bits


@method(room="kvcache", acts="between forward passes", paper="arXiv:2410.08584")
def zipvl_kv(
    high_bits: int = 4,
    low_bits: int = 2,
    keep_mass: float = 0.96,
    recent: int = 64,
    random: int = 64,
    every: int | None = 100,
    seed: int = 0,
    text_axis: Axes = ("channel", "token"),
    visual_bits: Sequence[int] | None = None,
    visual_axis: Axes | None = None,
    outliers: float = 0.0,
) -> Plugin:
    """Store the entries that hold most of the attention in more bits than the others.

    Score    attention from probe rows: the last ones and random ones, summed over the query heads of a group
    Who      as many entries of every head as the fewest that hold `keep_mass` of the attention, counted over all heads
             of a row together; which ones, each key head says by what they get a look (the paper's equations 6 to 8)
    Form     keys by channel over all entries that are packed together, values by token after each channel is divided
             by the root of its largest magnitude (ZipCache, arXiv:2405.14256)
    When     after each prompt or turn, everything; then every `every` generated tokens, by the last token's attention
    Paper    ZipVL, arXiv:2410.08584, version 1, section 4. Version 2 evicts instead: `low_bits=0`
    Differs  no code was released. The paper does not say for which head a token is important: here each key head
             chooses, all heads of a row equally many, so that no head is padded. What was packed stays: ZipCache
             unpacks and packs everything again, and drifts. Groups end at a head, not at a batch
    Cost     `recent` + `random` attention rows a layer, then one query row kept a step. Reading as in `kivi`
    Saves    KV cache; realised. Bits a number: a bit less than half of a place (32 / width) more than the mean of both

    Args:
        high_bits: of important entries: 1, 2, 4, 8, or 16 for as they are.
        low_bits: of the others; 0 evicts them.
        keep_mass: fraction (0, 1] of the attention that the important entries hold.
        recent: probe rows at the end of the prompt, at least 1.
        random: as many more drawn from the rest.
        every: generated tokens that are packed at once; None leaves what is generated exact.
        seed: of the draw.
        text_axis: "channel" or "token" for keys and for values.
        visual_bits: high and low bits of visual entries, where they differ; 1 bit shrinks ranges as in CalibQuant.
        visual_axis: the same as `text_axis` for visual entries.
        outliers: fraction of each group that is exact.

    Raises:
        ConfigError: a width, axis or fraction that does not exist, low bits that are not fewer than high bits.
    """
    check_whole("recent", recent)
    check_whole("random", random, 0)
    probes = ByMass(CacheRows("last", recent, random=random, seed=seed), keep_mass)
    check_whole("seed", seed, 0)
    pairs = (high_bits, low_bits) if visual_bits is None else check_several("visual_bits", visual_bits, PAIR)
    tiers = two_tiers((high_bits, low_bits), pairs, text_axis, visual_axis, outliers)
    return mixed("zipvl_kv", tiers, probes, keep_mass, every)


def mixed(name: str, tiers: tuple[Tier, Tier], allot: Allotment, keep_mass: float, every: int | None) -> CacheFormats:
    """Two tiers, allotted while decoding by the last token's attention."""
    later = ByMass(CacheRows("last", 1, steps=True), keep_mass)
    return CacheFormats(name, tiers, allot, None if every is None else later, every=every)


PAIR = "two widths, the second one smaller"


def two_tiers(
    text: tuple[int, int], visual: Sequence[int], text_axis: Axes, visual_axis: Axes | None, outliers: float
) -> tuple[Tier, Tier]:
    """The tiers of important entries and of others, in ZipCache's groups; text, visual: high and low bits."""
    for pair in (text, visual):
        for width in pair:
            check_choice("a width", width, (0, 1, 2, 4, 8, 16))
        if len(pair) != 2 or pair[1] >= pair[0]:
            raise ConfigError(explain(f"high and low bits {tuple(pair)}", PAIR, "Order the widths"))
    apart = tuple(visual) != tuple(text)
    high, low = (
        Tier(
            in_bits(one, text_axis, None, outliers, separable=True),
            in_bits(other, visual_axis or text_axis, None, outliers, separable=True, shrunk=apart),
        )
        for one, other in zip(text, visual, strict=True)
    )
    return high, low
