"""The state of one forward call of the decoder; lives in a context variable, never on a module."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vlm_eff.core.cache import IMAGE, TEXT, VIDEO
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.observe import Tapped
from vlm_eff.models.place import moved
from vlm_eff.models.side_store import SideStore, Tokens
from vlm_eff.models.token_map import TokenMap
from vlm_eff.models.tower import Arrived
from vlm_eff.models.visual import SpanSource, VisualSpans, make_spans

T = TypeVar("T")
# what has tensors that a layer looks at
_FOLLOWING = (
    "spans", "original", "survivors", "reindexed", "shift", "ropes", "tapped", "inputs", "stages", "maps", "attended",
    "listed", "shed", "aside", "log_weight", "modality", "extra",
)  # fmt: skip


@dataclass
class Entry:
    """What the core model was called with, before anything is embedded; `owner` is the runtime it belongs to.

    grids:      [N, 3] frames, height and width of the videos the tower was run on last, for families that need them
    pictured:   images or videos came along. Without, a placeholder among the ids stands for nothing: assisted decoding
                may repeat one of the prompt's
    split:      this is a chunk of a prompt whose images were encoded before
    unverified: candidates of assisted decoding at the end, which are never the query
    """

    owner: object
    ids: Tensor | None = None
    embeds: Tensor | None = None
    mask: Tensor | None = None
    labels: Tensor | None = None
    unverified: int = 0
    pictured: bool = False
    split: bool = False
    grids: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """One decision, kept as tensors until somebody asks for the report."""

    plugin: str
    layer: int
    before: Tensor
    got: Tensor
    fillers: int


@dataclass
class Call:
    """One pass through the decoder.

    survivors is None until something is dropped; `full` says that hidden states are at full length although something
    was dropped (between a DeepStack layer and the next). `sequence` notes (queries, cached keys) of each hooked layer,
    `attended` who takes part in its attention where that is fewer, `listed` in which share [] of the pairs of a causal
    pass it attends where that is less, and whether the others are spared. `inside` makes the view of the layer that
    attends, `compact` says that its cache is compressed. `again` says how many times the rectangle of queries and keys
    of a layer is computed, where that is not once. `aside` holds the hidden states of registers while the others
    are at full length, `log_weight` is added to logits.
    `modality` [B, S] int8 says what the tokens are, where plugins of the cache ask; `passed` is their runtime's.
    `merged` notes what was merged: layer, logical slots [B, K] and the tokens that each stands for (0 for a filler).
    `deciding` adds up the seconds in which the tower was looked at and plugins scored and selected.
    """

    entry: Entry
    rows: int
    length: int
    past: int
    device: torch.device
    spans: VisualSpans | None = None
    original: VisualSpans | None = None
    survivors: TokenMap | None = None
    last_visual: int = -1
    restore_until: int = 0
    full: bool = False
    reindexed: Tensor | None = None
    shift: Tensor | None = None
    ropes: dict[int, Any] = field(default_factory=dict)
    tapped: dict[int, Tapped] = field(default_factory=dict)
    inputs: dict[int, tuple[Tensor, TokenMap]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    merged: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    maps: dict[int, TokenMap] = field(default_factory=dict)
    inside: Callable[[], Any] | None = None
    compact: bool = False
    attended: dict[int, TokenMap] = field(default_factory=dict)
    listed: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)
    again: dict[int, float] = field(default_factory=dict)
    sequence: dict[int, tuple[int, int]] = field(default_factory=dict)
    tower: Arrived | None = None
    aside: Tensor | None = None
    log_weight: Tensor | None = None
    masks_built: int = 0
    compressed: bool = False
    modality: Tensor | None = None
    passed: Any = None
    # revival: stores of this call by layer; does this call look at stores; what runs along now, and whether rows differ
    shed: dict[int, SideStore] = field(default_factory=dict)
    later: bool = False
    extra: Tokens | None = None
    ragged: bool = False
    revived: bool = False
    deciding: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    _memo: dict[Hashable, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def step(self) -> bool:
        """One token behind others, of which nothing is dropped: a decode step."""
        return self.length == 1 and self.past > 0 and self.spans is None

    def shared(self, what: str, keys: tuple[Any, ...], make: Callable[[], T]) -> T:
        """`make()`, computed once a call for the same objects; the objects are held so that ids stay theirs."""
        name = (what, *(key if isinstance(key, int) else id(key) for key in keys))
        if name not in self._memo:
            self._memo[name] = (keys, make())
        made: T = self._memo[name][1]
        return made

    def present(self) -> TokenMap:
        """The survivors; the identity while nothing was dropped."""
        if self.survivors is not None:
            return self.survivors
        return self.shared("identity", (), lambda: TokenMap.identity(self.rows, self.length, self.device))

    def per_image(self) -> Tensor:
        """Candidates of every image of each row at the start [B, G], 0 where a row has fewer images."""
        assert self.original is not None
        spans = self.original
        made = spans.slot.new_zeros(self.rows, int(spans.image.max()) + 1)
        return made.scatter_add_(1, spans.image, spans.valid.to(made.dtype))

    def follow(self, device: torch.device) -> None:
        """Bring what is known of the call to the device on which its hidden states are now."""
        if device == self.device:
            return
        seen: dict[int, Any] = {}
        for name in _FOLLOWING:
            setattr(self, name, moved(getattr(self, name), device, seen))
        if self.passed is not None:
            self.passed.follow(device)
        self.device = device
        self._memo.clear()

    def full_length(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The hidden states a decoder hands out, each at full length: layer 0's input, then every layer's output."""
        made = []
        for place, one in enumerate(states):
            layer = max(place - 1, 0)
            # a layer before DeepStack features are added has put its output back already
            back = place > 0 and layer < self.restore_until
            present = None if back else self.maps.get(layer)
            made.append(one if present is None else moved(present, one.device).scatter(one))
        return tuple(made)

    def close(self) -> None:
        """Let go of keys, masks, tables and embeddings: what a report needs is small."""
        self.tapped.clear()
        self.inputs.clear()
        self.inside = None
        self.shed.clear()
        self.extra = None
        self.ropes.clear()
        self.tower = None
        self._memo.clear()
        self.aside = self.log_weight = None
        self.entry.embeds = None

    def query_slot(self) -> Tensor:
        """Logical slot of the last prompt token of each row [B]; tokens not yet verified are left out."""
        return self.shared("query", (), self._query_slot)

    def _query_slot(self) -> Tensor:
        mask = self.entry.mask
        if mask is None or mask.dim() != 2:
            last = torch.full((self.rows,), self.length - 1, device=self.device)
        else:
            new = mask[:, -self.length :].to(self.device)
            last = self.length - 1 - new.flip(1).to(torch.int8).argmax(1)
        return last - self.entry.unverified

    def real(self) -> Tensor:
        """True where a slot of this call is no padding [B, S]."""
        mask = self.entry.mask
        if mask is None or mask.dim() != 2:
            return torch.ones(self.rows, self.length, dtype=torch.bool, device=self.device)
        return mask[:, -self.length :].to(self.device).bool()

    def prompt_hash(self) -> tuple[int, ...]:
        """A number for each row from its prompt's ids, padding and unverified tokens left out; 0 without ids."""
        if self.entry.ids is None:
            return (0,) * self.rows
        ids, real = self.entry.ids.cpu().numpy(), self.real().cpu().numpy()
        stop = self.length - self.entry.unverified
        return tuple(zlib.crc32(row[:stop][keep[:stop]].tobytes()) for row, keep in zip(ids, real, strict=True))


def find_spans(adapter: Adapter, entry: Entry, embeds: Tensor, positions: Tensor | None) -> VisualSpans | None:
    """The visual tokens of a call, or None when it has none.

    embeds: [B, S, D] what the decoder receives; positions: position ids as the decoder receives them.
    """
    image, video = _placeholders(adapter, entry, embeds)
    visual = image | video
    if not visual.any():
        return None
    newline = adapter.newline()
    source = SpanSource(
        visual=visual.cpu().numpy(),
        video=video.cpu().numpy(),
        ids=None if entry.ids is None else entry.ids.cpu().numpy(),
        newline=None if newline is None else _is_newline(embeds, newline, visual),
        positions=_axes(positions, embeds.shape[0]) if adapter.family.multi_axis_rope else None,
        grids=None if entry.grids is None else entry.grids.cpu().numpy(),
    )
    return make_spans(adapter.layout(source), embeds.device)


def modality_of(adapter: Adapter, entry: Entry, embeds: Tensor) -> Tensor:
    """What each token of a call is [B, S] int8, see `core/cache.py`; padding is not told apart here."""
    image, video = _placeholders(adapter, entry, embeds)
    return torch.where(video, VIDEO, torch.where(image, IMAGE, TEXT)).to(torch.int8)


def has_placeholders(adapter: Adapter, ids: Tensor) -> bool:
    """True when any of `ids` [B, S] stands for a visual token."""
    return any(bool((ids == token).any()) for token in (*adapter.tokens, *adapter.video_tokens))


def _placeholders(adapter: Adapter, entry: Entry, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Where placeholders of images and of videos stand [B, S] each."""
    return find_ids(adapter, entry, embeds, adapter.tokens), find_ids(adapter, entry, embeds, adapter.video_tokens)


def find_ids(adapter: Adapter, entry: Entry, like: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Where the ids of a call are among `tokens` [B, S]; `like` [B, S, ...] tells shape and device."""
    found = torch.zeros(like.shape[:2], dtype=torch.bool, device=like.device)
    embed = adapter.core.get_input_embeddings()
    for token in tokens:
        if entry.ids is not None:
            found |= (entry.ids == token).to(like.device)
        elif entry.embeds is not None:
            # called with embeddings: a token is where the rows equal its own embedding
            own = embed(torch.tensor(token, device=entry.embeds.device))
            found |= (entry.embeds == own).all(-1).to(like.device)
    return found


def _is_newline(embeds: Tensor, newline: Tensor, visual: Tensor) -> np.ndarray:
    made = (embeds == newline.to(embeds.device, embeds.dtype)).all(-1) & visual
    found: np.ndarray = made.cpu().numpy()
    return found


def _axes(positions: Tensor | None, rows: int) -> np.ndarray | None:
    """Time, height and width positions [3, B, S]; None when the model was given one-axis positions."""
    if positions is None or positions.dim() != 3:
        return None
    made: np.ndarray = positions[-3:].expand(3, rows, -1).cpu().numpy()
    return made
