"""What each method of the cache promises of its hard setting, beside what all of them do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from tests.contracts import kit, kv_evicting, kv_sharing
from tests.contracts.kv_cases import KV_CASES
from tests.contracts.kv_definitions import Kept, newest, ranked, window_mass
from vlm_eff import methods
from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import kivi, saliency_precision, visual_quant, zipvl_kv


@dataclass(frozen=True)
class Promise:
    """Of the entries of one prompt, right after it.

    budget:   real entries of a prompt -> those that stay in a layer and head, on average; None: no fixed number
    even:     each layer and head keeps this many
    first, last: entries that stay in any case
    needle:   queries at the end whose favourite stays; 0 where attention does not decide
    ties:     equal keys and values get equal scores, so that the lower positions stay
    rewrites: what is stored is not what the model computed
    chunks:   a prompt in chunks is treated as one prompt
    queries:  rows that are kept beside the entries while decoding
    relative: how close two ways of computing the same come; where numbers are rounded to steps, an addition in another
              order moves some of them to the next step
    definition: the entries that stay, computed anew; None where the method's own tests do that
    nothing:  the setting that changes nothing; where left out, `keep_ratio=1.0` if the method has that argument
    """

    budget: Callable[[int], int] | None = None
    even: bool = True
    first: int = 0
    last: int = 0
    needle: int = 0
    ties: bool = False
    rewrites: bool = False
    chunks: bool = True
    queries: int = 0
    relative: float = kit.RELATIVE
    definition: Kept | None = None
    nothing: Plugin | None = None


def share(ratio: float, least: int = 0) -> Callable[[int], int]:
    """A fraction of the entries, rounded up."""
    return lambda count: min(max(math.ceil(ratio * count - 1e-9), least), count)


def upto(count: int) -> Callable[[int], int]:
    """A number of entries, or all."""
    return lambda there: min(count, there)


STEPS = 100 * kit.RELATIVE

PROMISES: dict[str, Promise] = {
    # as many directions as there are take more memory than the entries, which then stay as they were
    "cross_modal_low_rank": Promise(rewrites=True, nothing=methods()["cross_modal_low_rank"].make(energy=1.0)),
    "h2o": Promise(upto(11), last=6, ties=True, definition=ranked(kv_evicting.mass_of_all(), upto(11), last=6)),
    "entropy": Promise(share(0.4), last=3),
    "entropy_regularised": Promise(share(0.4), last=3),
    "hessian": Promise(share(0.4), last=4),
    "meda": Promise(share(0.5), even=False, last=1, rewrites=True),
    "look_m": Promise(share(0.6), last=2, rewrites=True),
    "random_evict": Promise(budget=share(0.4)),
    "scissorhands": Promise(
        upto(12), last=3, needle=5, ties=True, queries=5, definition=ranked(kv_evicting.reads(5), upto(12), last=3)
    ),
    # the last chunk alone is asked how its answer depends on what the others stored
    "sensitivity": Promise(share(0.4), last=3, chunks=False),
    "snapkv": Promise(share(0.4), last=4, needle=4, definition=ranked(window_mass(4, 5), share(0.4), last=4)),
    "streaming_llm": Promise(
        lambda count: min(11, count), first=3, last=8, ties=True, definition=ranked(newest, lambda count: 11, first=3)
    ),
    "tova": Promise(
        share(0.4),
        last=1,
        needle=1,
        ties=True,
        queries=1,
        definition=kv_evicting.shared(kv_evicting.last_row, share(0.4), 1),
    ),
    "kivi": Promise(rewrites=True, relative=STEPS, nothing=kivi(bits=16)),
    "saliency_precision": Promise(
        rewrites=True, queries=4, relative=STEPS, nothing=saliency_precision((2, 16), high_share=1.0)
    ),
    "visual_quant": Promise(rewrites=True, relative=STEPS, nothing=visual_quant(bits=16)),
    "zipvl_kv": Promise(rewrites=True, queries=1, relative=STEPS, nothing=zipvl_kv(high_bits=16, keep_mass=1.0)),
    "adakv": Promise(
        share(0.5, 4), even=False, last=4, needle=4, definition=kv_sharing.across_heads(4, 3, 0.2, share(0.5, 4))
    ),
    "prefixkv": Promise(
        share(0.4, 3),
        even=False,
        first=2,
        last=1,
        definition=kv_sharing.by_layer(
            kv_sharing.common, kv_sharing.all_mass, share(0.4, 3), lambda count: (2, 1), together=True
        ),
    ),
    "pyramidkv": Promise(
        share(0.4, 4),
        even=False,
        last=4,
        definition=kv_sharing.by_layer(
            kv_sharing.pyramid(4, 20),
            kv_sharing.pooled_window(4, 5),
            share(0.4, 4),
            lambda count: (0, 4),
            together=False,
        ),
    ),
    "vl_cache": Promise(
        share(0.4),
        even=False,
        last=1,
        definition=kv_sharing.by_layer(
            kv_sharing.dense(0.01),
            kv_sharing.behind_mass,
            share(0.4),
            lambda count: (0, max(math.ceil(0.2 * count - 1e-6), 1)),
            together=True,
        ),
    ),
}


def promise(name: str) -> Promise:
    """What a method promises; nothing special where it is not listed."""
    return PROMISES.get(name, Promise())


def keeps_everything(name: str) -> Plugin | None:
    """The setting of a method that changes nothing, or None where there is none."""
    given = promise(name).nothing
    if given is None and "keep_ratio" in inspect.signature(methods()[name].make).parameters:
        return methods()[name].make(keep_ratio=1.0)
    return given


def having(what: str) -> list[str]:
    """Methods that promise something."""
    return [name for name in KV_CASES if getattr(promise(name), what)]
