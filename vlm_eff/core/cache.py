"""What plugins of the KV cache say: where they are asked, what they need to see, what becomes of each entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vlm_eff.core.config import part

if TYPE_CHECKING:
    from torch import Tensor

EVICTED = -1
EXACT = 0

# what a column of the sequence is, in `Entries.modality` and everywhere in the room
PADDING, TEXT, IMAGE, VIDEO = -1, 0, 1, 2


@dataclass(frozen=True)
class CacheSite:
    """Between two forward passes, when everything stored is verified: the only moment at which a cache is compressed.

    when: "prompt" is before the first decode step after a prompt or a turn, "step" before any later decode step
    """

    when: Literal["prompt", "step"] = "prompt"


@dataclass(frozen=True)
class LogitSite:
    """Inside the attention of every decoder layer, in every call; asked once, at attach, with a view that is None."""


@dataclass(frozen=True)
class ScaleLogits:
    """The answer at a `LogitSite`.

    factors: [M][M] of logits, before a soft cap: line m for queries of modality m, column n for keys of modality n
    """

    factors: tuple[tuple[float, ...], ...]


@part
@dataclass(frozen=True)
class CacheRows:
    """A request for query rows of a prompt; their attention over the stored keys is computed when it is asked for.

    which: "last" the last `count` tokens, "text" the last `count` text tokens (where a row has none: tokens),
           "after" everything behind the last visual token, at most `count` of it (where nothing is behind: the last
           `fallback` tokens), "all" every token, at most the last `count`
    count: rows, or None for no limit
    random: as many more rows drawn from the rest of the prompt; seed: of the draw, which depends on the place alone
    steps: the rows of decode steps are collected too, for plugins that go on compressing
    """

    which: Literal["last", "text", "after", "all"] = "last"
    count: int | None = 32
    fallback: int = 32
    random: int = 0
    seed: int = 0
    steps: bool = False


@part
@dataclass(frozen=True)
class CacheSums:
    """A request for what each entry received from all queries so far, added up as they pass.

    kind:  "mass" the attention; "longest" the attention times what the query could look at; "modality" the attention
           apart by the modality of the query (text, image, video)
    steps: decode steps count too
    """

    kind: Literal["mass", "longest", "modality"] = "mass"
    steps: bool = False


@part
@dataclass(frozen=True)
class CacheGradients:
    """A request for gradients of an answer with respect to every key and value of a prompt; costs a second forward.

    of:     "greedy" the log-probability of the most likely next token, "logits" the sum of the last row's logits
    cross:  also what reaches a key through the next layer's keys of other modalities
    """

    of: Literal["greedy", "logits"] = "greedy"
    cross: bool = False


@dataclass(frozen=True)
class CachePlaces:
    """A request for the rotary positions of every entry, with which keys can be turned back and forth."""


CacheNeed = CacheRows | CacheSums | CacheGradients | CachePlaces


@dataclass(frozen=True)
class Stored:
    """What becomes of the open entries of one layer.

    form:    [B, Hkv, N] int8: `EVICTED`, `EXACT`, or i for entries that go into `forms[i - 1]`
    forms:   how packed entries are stored, see `models/kv/segments.py`
    key, value: [B, Hkv, N, Dh] new contents of kept entries, or None where they stay as they are
    weight:  [B, Hkv, N] float32 number of tokens that each kept entry stands for, or None for one each
    """

    form: Tensor
    forms: tuple[Any, ...] = ()
    key: Tensor | None = None
    value: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Compress:
    """The action of a plugin of the cache: what becomes of each layer, computed one layer at a time.

    layers: decoder layers that are touched; store: layer -> `Stored`, called in ascending order, once each
    """

    layers: tuple[int, ...]
    store: Callable[[int], Stored]
