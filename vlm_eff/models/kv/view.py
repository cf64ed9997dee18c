"""What a plugin sees of a cache between two forward passes. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from vlm_eff.core.cache import PADDING, TEXT, CacheGradients, CacheRows, CacheSums
from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.importance.entry_scores import received
from vlm_eff.importance.modality_table import scale_logits
from vlm_eff.kernels.compact import compact
from vlm_eff.kernels.window_scores import window_scores
from vlm_eff.models.kv.book import Asked, Columns, Sums, final_rows
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.places import Rotary
from vlm_eff.models.observe import dot
from vlm_eff.models.ranks import own_part


@dataclass(frozen=True)
class Traits:
    """How a layer attends, as its own call of the attention function said, and the module that does."""

    scaling: float
    softcap: float | None
    attention: nn.Module | None = None
    # [M, M] factors of logits by modality of query and key, or None
    table: Tensor | None = None


@dataclass(frozen=True)
class RowAttention:
    """Attention of some query rows over the open entries of a layer.

    weight: [B, H, R, N] softmaxed over all that the row may look at, float32; 0 for rows that do not exist
    logits: [B, H, R, N] before the softmax, without multiplicities; -inf where the row may not look
    looks:  [B, Hkv, R, N] which entries a row may look at
    rows:   the queries
    """

    weight: Tensor
    logits: Tensor
    looks: Tensor
    rows: Asked


@dataclass(frozen=True)
class Entries:
    """The open entries of one layer: those stored as they were, up to the end of the prompt (or of everything).

    key, value: [B, Hkv, N, Dh]    position: [B, Hkv, N] logical, -1 for fillers    modality: [B, Hkv, N] int8
    present:    [B, Hkv, N] neither filler nor padding; everything else can only be evicted
    weight:     [B, Hkv, N] tokens that an entry stands for, or None for one each
    closed:     [B, Hkv] entries that were packed earlier and are counted, but not shown
    seen:       [B] tokens that the sequence has up to here, padding left out
    columns:    [B, Hkv, N] where each entry is among all that is stored
    """

    layer: int
    key: Tensor
    value: Tensor
    position: Tensor
    modality: Tensor
    present: Tensor
    weight: Tensor | None
    closed: Tensor
    seen: Tensor
    columns: Tensor
    _cache: CompressedLayer
    _record: Columns
    _traits: Traits | None
    _rotary: Rotary | None

    @property
    def stored(self) -> Entries:
        """Those of the heads that this process stores: all, but for tensor parallelism."""
        return self

    def own(self, states: Tensor) -> Tensor:
        """Of something for all heads [B, Hkv, ...] what concerns the heads that are `stored`."""
        return states

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's keys and values in this layer, over all its heads."""
        return sum(states.shape[1] * states.shape[3] * states.element_size() for states in (self.key, self.value))

    def attention(self, rule: CacheRows, *, closed: bool = False) -> RowAttention:
        """Attention of the rows that the plugin named in its `needs`; an entry's queries must come after it.

        closed: over the packed entries too, which then come before the open ones
        """
        rows, traits = self._rows(rule)
        keys, positions, weights = self._everything()
        factor = None
        if (table := traits.table) is not None:
            modality = modality_at(self._record, positions)
            factor = partial(scale_logits, alpha=table, query_modality=rows.modality, key_modality=modality)
        logits = dot(rows.query, keys, traits.scaling, traits.softcap, factor)
        looks = looks_at(rows, positions, self._record.real)
        spread = logits.shape[1] // looks.shape[1]
        hidden = ~looks.repeat_interleave(spread, 1)
        logits = logits.masked_fill(hidden, float("-inf"))
        counted = logits
        if weights is not None:
            counted = logits + weights.clamp(min=1).log()[:, :, None].repeat_interleave(spread, 1)
        # a row that does not exist sees nothing and has no softmax
        weight = counted.softmax(-1).masked_fill(hidden, 0.0)
        weight = weight.masked_fill(~rows.valid[:, None, :, None], 0.0)
        first = 0 if closed else keys.shape[2] - self.key.shape[2]
        return RowAttention(weight[..., first:], logits[..., first:], looks[..., first:], rows)

    def received(self, rule: CacheRows) -> Tensor:
        """What each entry gets from the rows, summed over them and over its query heads [B, Hkv, N] float32.

        The sums of `attention`, by the fused operation where nothing but the queries and keys decides the logits.
        """
        rows, traits = self._rows(rule)
        keys, positions, weights = self._everything()
        if traits.table is not None or weights is not None:
            seen = self.attention(rule)
            return received(seen.weight, seen.rows.valid, seen.looks, self.key.shape[1])
        looks = looks_at(rows, positions, self._record.real)
        made = window_scores(
            rows.query, keys, scaling=traits.scaling, softcap=traits.softcap, causal=False, looks=looks
        )
        return made[..., keys.shape[2] - self.key.shape[2] :].float()

    def looking(self, rule: CacheRows) -> Tensor:
        """How many of the rows may look at each entry [B, Hkv, N]."""
        rows, _ = self._rows(rule)
        return looks_at(rows, self.position, self._record.real).sum(2)

    def _rows(self, rule: CacheRows) -> tuple[Asked, Traits]:
        """The rows of a rule as they stand now, and how their layer attends."""
        asked = self._cache.book.asked.get(rule)
        if asked is None or self._traits is None:
            raise _not_seen(f"query rows {rule}", self.layer)
        return final_rows(rule, asked), self._traits

    def all_values(self) -> Tensor:
        """Values of the packed entries, then of the open ones [B, Hkv, S, Dh]: what `attention(closed=True)` weighs."""
        packed = [segment for segment in self._cache.segments if not segment.exact]
        return torch.cat([*(one.read(self.value.dtype, self._rotary)[1] for one in packed), self.value], 2)

    def output_metric(self) -> Tensor:
        """W^T W of each query head's part W of the layer's output projection [H, Dh, Dh] float32.

        Raises:
            CapabilityError: the layer has no plain projection, because it is named otherwise or quantised.
        """
        projection = getattr(None if self._traits is None else self._traits.attention, "o_proj", None)
        weight, width = own_part(getattr(projection, "weight", None)), self.value.shape[3]
        if weight is None or weight.dim() != 2 or not weight.is_floating_point() or weight.shape[1] % width:
            raise CapabilityError(
                explain(
                    f"layer {self.layer} with an output projection of type {type(projection).__name__}",
                    "a linear o_proj in floating point",
                    'Use metric="value"',
                )
            )
        if weight.is_meta:
            # offloaded: it is there only while the module runs
            weight = _by_calling(projection, weight, self.value)
        parts = weight.detach().float().view(weight.shape[0], -1, width)
        return torch.einsum("dhi,dhj->hij", parts, parts)

    def sums(self, kind: CacheSums) -> Sums:
        """What the open entries received from all queries, and how many queries could look at each."""
        made = self._cache.book.sums.get(kind)
        if made is None:
            raise _not_seen(f"sums {kind}", self.layer)
        return made.take(self.columns)

    def gradient(self, wanted: CacheGradients) -> Tensor:
        """Gradients with respect to keys and values of the open entries [B, Hkv, N, 2 Dh], keys first; see the need.

        With `cross` one number more: the squared length of what comes through keys of other modalities.
        """
        made = self._cache.book.gradients.get(wanted)
        if made is None:
            raise _not_seen(f"gradients {wanted}", self.layer)
        return compact([made], self.columns)[0]

    @property
    def ordinal(self) -> Tensor:
        """How many real tokens of its sequence come before each entry [B, Hkv, N]; meaningless for fillers."""
        return _at(self._record.real.cumsum(1) - 1, self.position)

    @cached_property
    def attended(self) -> Tensor:
        """Entries that took part in this layer's attention in their own prefill [B, Hkv, N]."""
        known = self._cache.book.attended
        if known is None:
            return self.present
        # what came later took part
        return self.present & (_at(known, self.position) | (self.position >= known.shape[1]))

    def last_visual(self) -> Tensor:
        """Logical position of each row's last visual token [B], -1 without any."""
        place = torch.arange(self._record.modality.shape[1], device=self.position.device)
        return torch.where(self._record.modality > 0, place, -1).amax(1)

    def seen_of(self, visual: bool) -> Tensor:
        """How many of the tokens seen are visual, or are not [B]; what was evicted counts."""
        among = (self._record.modality > TEXT).sum(1)
        return among if visual else self.seen - among

    def unrotated(self) -> Tensor:
        """The keys without their rotation [B, Hkv, N, Dh], in families with the common rotary embedding."""
        if self._rotary is None:
            raise _not_seen("rotary positions", self.layer)
        return self._rotary.back(self.key, self.position)

    def metric_before_rotation(self, metric: Tensor, among: Tensor) -> Tensor:
        """A metric of rotated keys [B, Hkv, Dh, Dh] for keys without rotation, mean over `among` [B, Hkv, N]."""
        if self._rotary is None:
            raise _not_seen("rotary positions", self.layer)
        return self._rotary.before(metric, self.position, among)

    def _everything(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, positions and weights of closed entries, then of the open ones."""
        closed = [segment for segment in self._cache.segments if not segment.exact]
        if not closed:
            return self.key, self.position, self.weight
        keys = [segment.read(self.key.dtype, self._rotary)[0] for segment in closed]
        positions = [segment.position for segment in closed]
        weights = None
        if self.weight is not None or any(segment.weight is not None for segment in closed):
            parts = [(segment.weight, segment.position) for segment in closed] + [(self.weight, self.position)]
            weights = torch.cat([w if w is not None else torch.ones_like(p, dtype=torch.float32) for w, p in parts], 2)
        return torch.cat([*keys, self.key], 2), torch.cat([*positions, self.position], 2), weights


@dataclass(frozen=True)
class CacheView:
    """The cache between two forward passes.

    layers: decoder layers that can be compressed, in order; length: logical length of the cache
    fresh:  entries that came since the last compression, in the layer that got most; known without asking the device
    """

    layers: tuple[int, ...]
    length: int
    fresh: int
    _entries: Callable[[int], Entries]
    _made: dict[int, Entries]
    _open: Callable[[int], int]

    def entries(self, layer: int) -> Entries:
        """The open entries of a layer; what was made for one plugin is not kept for the next."""
        if layer not in self._made:
            self._made[layer] = self._entries(layer)
        return self._made[layer]

    def open(self, layer: int) -> int:
        """N of the open entries of a layer, fillers included; known without making or asking anything."""
        return self._open(layer)

    def forget(self, layer: int) -> None:
        """Let go of a layer that is written."""
        self._made.pop(layer, None)


def looks_at(rows: Asked, positions: Tensor, real: Tensor) -> Tensor:
    """Which entries each row may look at [B, Hkv, R, N]."""
    heads, width = positions.shape[1], rows.looks.shape[2]
    known = rows.looks & real[:, None, :width] & rows.valid[:, :, None]
    at = positions.clamp(min=0, max=width - 1).long()[:, :, None].expand(-1, -1, known.shape[1], -1)
    made = known[:, None].expand(-1, heads, -1, -1).gather(3, at)
    return made & ((positions >= 0) & (positions < width))[:, :, None]


def _at(columns: Tensor, position: Tensor) -> Tensor:
    """Take `columns` [B, S] at `position` [B, Hkv, N]; the last column's where there is no such column."""
    at = position.clamp(min=0, max=columns.shape[1] - 1).long()
    return columns.to(position.device)[:, None].expand(-1, position.shape[1], -1).gather(2, at)


def modality_at(columns: Columns, position: Tensor) -> Tensor:
    """What stands at `position` [B, Hkv, N] int8; fillers are `PADDING`."""
    return _at(columns.modality, position).masked_fill(position < 0, PADDING)


def open_entries(
    layer: int, cache: CompressedLayer, columns: Columns, limit: int, context: tuple[Traits | None, Rotary | None]
) -> Entries:
    """The entries of a layer at positions below `limit` that are stored as they were.

    context: how the layer attends, and its rotary tables
    """
    traits, rotary = context
    keys, values, positions, weights, places = [], [], [], [], []
    first, closed = 0, cache.slots.index.new_zeros(cache.keys.shape[:2])
    for segment in cache.segments:
        if segment.exact:
            key, value = segment.read(cache.keys.dtype, rotary)
            keys, values, positions = [*keys, key], [*values, value], [*positions, segment.position]
            weights.append(segment.weight)
            places.append(torch.arange(first, first + segment.count, device=cache.keys.device))
        else:
            closed = closed + (segment.position >= 0).sum(-1)
        first += segment.count
    inside = cache.inside(limit)
    keys, values = [*keys, cache.keys[:, :, :inside]], [*values, cache.values[:, :, :inside]]
    positions.append(cache.positions()[:, :, first : first + inside])
    weights.append(None if cache.weight is None else _padded(cache.weight, inside))
    places.append(torch.arange(first, first + inside, device=cache.keys.device))
    position = torch.cat(positions, 2)
    modality = modality_at(columns, position)
    weight = None
    if any(one is not None for one in weights):
        pairs = zip(weights, positions, strict=True)
        weight = torch.cat([w if w is not None else torch.ones_like(p, dtype=torch.float32) for w, p in pairs], 2)
    at = torch.cat(places).expand(position.shape)
    key, value = (one[0] if len(one) == 1 else torch.cat(one, 2) for one in (keys, values))
    return Entries(
        layer, key, value, position, modality, modality != PADDING, weight, closed, columns.cut(limit).real.sum(1),
        at, cache, columns, traits, rotary,
    )  # fmt: skip


def _by_calling(projection: nn.Module, weight: Tensor, like: Tensor) -> Tensor:
    """The weight [out, in] of a linear module, from what it makes of unit vectors."""
    units = torch.eye(weight.shape[1], dtype=weight.dtype, device=like.device)
    made: Tensor = projection(units) - projection(torch.zeros_like(units[:1]))
    return made.to(like.device).T


def _padded(weight: Tensor, count: int) -> Tensor:
    """Weights of the first entries, then 1 for those behind."""
    return torch.nn.functional.pad(weight, (0, count - weight.shape[2]), value=1.0)


def _not_seen(what: str, layer: int) -> StateError:
    return StateError(
        explain(
            f"{what} of layer {layer} were not observed before they were asked for",
            "observations that a plugin names in its needs",
            "Add the observation to the plugin's needs",
        )
    )
