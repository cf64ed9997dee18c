"""Two settings of every method: one that a lazy implementation may survive, and one that it should not."""

from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import (
    adaptive_pool,
    atp,
    atp_learned,
    average_pool,
    cdpruner,
    cross_modal_window,
    dart,
    divprune,
    dycoke,
    evs,
    fastervlm,
    fastv,
    fastvid,
    feather,
    hired,
    lazyllm,
    magnitude_drop,
    prumerge,
    prumerge_plus,
    prunevid,
    pyramiddrop,
    random_drop,
    redundancy_drop,
    sparsevlm,
    streaming_heads,
    top_blocks,
    uniform_grid,
    v2drop,
    vcast,
    vertical_slash,
    victor,
    visionzip,
    vispruner,
    vtw,
    zipvl_attention,
)

METHOD_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "atp": (atp(), atp(kappa=0.3, layers=(1, 2, 4), stride=4, every=3)),
    # the tiny images are smaller than the default grid
    "adaptive_pool": (adaptive_pool(rows=2, columns=2), adaptive_pool(rows=3, columns=2, frames=1, layer=1)),
    "cdpruner": (cdpruner(), cdpruner(keep_ratio=0.4, layer=1, relevance_weight=None)),
    "divprune": (divprune(), divprune(keep_ratio=0.4, layer=1)),
    "fastv": (fastv(), fastv(layer=1, keep_ratio=0.3)),
    # layers 1, 2 and 4 of 6: two of them between DeepStack features and on sliding layers
    "pyramiddrop": (pyramiddrop(), pyramiddrop(keep_ratio=0.6, layers=(1, 2, 4))),
    "feather": (feather(), feather(keep_ratio=0.6, layers=(1, 3), stride=4)),
    "random_drop": (random_drop(), random_drop(keep_ratio=0.3, layer=2, seed=3)),
    "sparsevlm": (sparsevlm(), sparsevlm(counts=(9, 6, 3), layers=(1, 3, 4), heads=0.7)),
    "uniform_grid": (uniform_grid(), uniform_grid(keep_count=3, layer=1)),
    "average_pool": (average_pool(), average_pool(keep_ratio=0.5, layer=2)),
    "dart": (dart(), dart(layer=1, keep_count=7, pivots=2, text_pivots=3)),
    # revival changes the sets from call to call, which no masked run does: tests/slow_revival.py is its oracle
    "lazyllm": (lazyllm(revive="never"), lazyllm(keep_ratio=0.6, layers=(1, 2, 4), revive="never")),
    "magnitude_drop": (magnitude_drop(), magnitude_drop(layer=2, keep_ratio=0.3, norm=1)),
    "redundancy_drop": (redundancy_drop(), redundancy_drop(layer=1, keep_ratio=0.4)),
    "v2drop": (v2drop(), v2drop(keep_ratio=0.6, layers=(1, 3, 5))),
    "vtw": (vtw(), vtw(layer=1)),
    "dycoke": (dycoke(), dycoke(keep_ratio=0.5)),
    "evs": (evs(), evs(keep_ratio=0.7)),
    "fastvid": (fastvid(), fastvid(keep_ratio=0.5, segments=2, threshold=-1.0, context=0.5, every=2)),
    "prunevid": (prunevid(), prunevid(keep_ratio=0.7, layer=2, merge_ratio=0.6, static=0.0, least=2)),
    "vcast": (vcast(), vcast(keep_ratio=0.6, temperature=0.1)),
    "atp_learned": (atp_learned(untrained=True), atp_learned(layers=(1, 3), stride=5, untrained=True)),
    # registers of no training: what they say is nonsense, and must be the same nonsense in every way of computing it
    "victor": (victor(registers=4, untrained=True), victor(registers=3, layer=2, untrained=True, seed=3)),
}
# these act on video tokens alone: their contracts are checked on videos, and on images that nothing happens
VIDEO_METHODS = frozenset({"dycoke", "evs", "fastvid", "prunevid", "vcast"})
METHOD_CASES |= {
    "fastervlm": (fastervlm(), fastervlm(keep_count=4, block=1)),
    "hired": (hired(), hired(keep_ratio=0.5, overview=0.3, allocation_block=1)),
    "vispruner": (vispruner(), vispruner(keep_ratio=0.4, important=0.3, step=2)),
    "prumerge": (prumerge(), prumerge(keep_ratio=0.4, neighbours=3, block=1)),
    "prumerge_plus": (prumerge_plus(), prumerge_plus(factor=2.0, neighbours=4, faithful=True)),
    "visionzip": (visionzip(), visionzip(keep_ratio=0.6, contextual=0.4, faithful=True)),
}
EASY = {name: easy for name, (easy, _) in METHOD_CASES.items()}
HARD = {name: hard for name, (_, hard) in METHOD_CASES.items()}

KEEP_ALL: dict[str, Plugin] = {
    "atp": atp(keep_ratio=1.0),
    "adaptive_pool": adaptive_pool(rows=99, columns=99, frames=99),
    "cdpruner": cdpruner(keep_ratio=1.0),
    "divprune": divprune(keep_ratio=1.0),
    "fastv": fastv(keep_ratio=1.0),
    "pyramiddrop": pyramiddrop(keep_ratio=1.0),
    "feather": feather(keep_ratio=1.0),
    "random_drop": random_drop(keep_ratio=1.0),
    "sparsevlm": sparsevlm(keep_ratio=1.0),
    "uniform_grid": uniform_grid(keep_ratio=1.0),
    "average_pool": average_pool(keep_ratio=1.0),
    "dart": dart(keep_ratio=1.0),
    "lazyllm": lazyllm(keep_ratio=1.0),
    "magnitude_drop": magnitude_drop(keep_ratio=1.0),
    "redundancy_drop": redundancy_drop(keep_ratio=1.0),
    "fastervlm": fastervlm(keep_ratio=1.0),
    "hired": hired(keep_ratio=1.0),
    "vispruner": vispruner(keep_ratio=1.0),
    "prumerge": prumerge(keep_ratio=1.0),
    "prumerge_plus": prumerge_plus(keep_ratio=1.0),
    "visionzip": visionzip(keep_ratio=1.0),
    "v2drop": v2drop(keep_ratio=1.0, schedule="paper"),
    "dycoke": dycoke(keep_ratio=1.0),
    "evs": evs(keep_ratio=1.0),
    "fastvid": fastvid(keep_ratio=1.0),
    "prunevid": prunevid(keep_ratio=1.0, merge_ratio=1.0),
    "vcast": vcast(keep_ratio=1.0),
}
KEEP_ALL["atp_learned"] = atp_learned(keep_ratio=1.0, untrained=True)
# these have to be trained: a budget steers their training, not their decisions
LEARNED = frozenset({"atp_learned", "victor"})
# these have no setting under which nothing changes: vtw drops every visual token by definition, victor adds registers
NEVER_KEEP_ALL = frozenset({"victor", "vtw"})
# these add tokens: a layer stores and counts more than the survivors, as their own tests check
ADD_TOKENS = frozenset({"victor"})

# the method that touches most of the runtime: several stages, a score of its own, layers of every kind
HARDEST = HARD["pyramiddrop"]

# these leave every token in the sequence, and take some out of single layers' attention: easy, hard, keep everything
BYPASS_CASES: dict[str, tuple[Plugin, Plugin, Plugin]] = {
    "zipvl_attention": (
        zipvl_attention(),
        zipvl_attention(keep_mass=0.7, layers=(0, 1, 2, 5), recent=0.1, random=0.2, seed=5),
        zipvl_attention(keep_mass=1.0),
    ),
}

# these leave every token in every layer's attention, and take pairs of tokens out of it: as above. Prompts of the tiny
# models are shorter than any default, with which nothing changes: the easy ones look far, the hard ones near
SPARSE_CASES: dict[str, tuple[Plugin, Plugin, Plugin]] = {
    "cross_modal_window": (
        cross_modal_window(window=12),
        cross_modal_window(window=3, sinks=1, layers=(0, 1, 2, 5), tile=(8, 4)),
        cross_modal_window(),
    ),
    "streaming_heads": (
        streaming_heads(sinks=4, local=12),
        streaming_heads(sinks=2, local=7, dense_heads=((0, 1), (2, 0), (5, 1)), layers=(0, 1, 2, 5), tile=(4, 4)),
        streaming_heads(),
    ),
    "top_blocks": (
        top_blocks(keep_count=6, tile=(4, 4)),
        top_blocks(keep_mass=0.5, similarity=0.1, layers=(0, 1, 2, 5), tile=(4, 2)),
        top_blocks(keep_mass=1.0),
    ),
    "vertical_slash": (
        vertical_slash(verticals=12, slashes=12, last=8, sinks=2, local=4, tile=(16, 8)),
        vertical_slash(verticals=4, slashes=5, last=5, sinks=1, local=2, layers=(0, 1, 2, 5), tile=(4, 4)),
        vertical_slash(),
    ),
}
