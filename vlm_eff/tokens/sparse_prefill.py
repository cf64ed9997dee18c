"""Attention of the prefill in chosen blocks: the engine of methods that leave pairs of tokens out and drop no token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm_eff.core.action import AttendBlocks
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import AttentionSite, BindContext, Plugin, Site
from vlm_eff.core.resources import Resource
from vlm_eff.kernels import blocks
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.models.attend_blocks import Attending, BlockPattern
from vlm_eff.models.view import View
from vlm_eff.tokens.schedule import check_layers

Lists = tuple[BlockLists, Rule]
# queries and keys of a block: one tile of the kernel on the GPUs it is made for
TILE = (128, 64)


@part
@dataclass(frozen=True)
class SparsePrefill(Plugin):
    """Attends in the blocks that `pattern` lists; layers: None until bound means all."""

    method: str
    pattern: BlockPattern
    layers: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(AttentionSite(layer) for layer in self.layers or ())

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.ATTENTION_TOKENS})

    @property
    def causal(self) -> bool:
        return True

    def bind(self, context: BindContext) -> SparsePrefill:
        bound = replace(self, layers=tuple(range(context.num_layers)) if self.layers is None else self.layers)
        for site in bound.sites:
            context.check_layer(self.name, site.layer)
        return bound

    def at(self, site: Site, view: View) -> AttendBlocks:
        return AttendBlocks(self.pattern)


def sparse_prefill(method: str, pattern: BlockPattern, layers: Sequence[int] | None) -> SparsePrefill:
    """The plugin of a pattern; ConfigError for layers that do not ascend."""
    check_layers(layers)
    return SparsePrefill(method, pattern, None if layers is None else tuple(layers))


@part
@dataclass(frozen=True)
class CrossModal:
    """Text sees all and is seen by all; visual tokens see each other inside a window."""

    window: int
    sinks: int
    tile: tuple[int, int] = TILE

    @property
    def shared(self) -> bool:
        return True

    def lists(self, attending: Attending) -> Lists | None:
        queries, keys = attending.query.shape[2], attending.key.shape[2]
        if self.window >= keys:
            return None
        rows, columns = self.tile
        return blocks.cross_modal(
            attending.text, window=self.window, sinks=self.sinks, query_length=queries, rows=rows, columns=columns
        )


@part
@dataclass(frozen=True)
class Streaming:
    """Sinks and a window for every key head but the dense ones, each a pair (layer, key head)."""

    sinks: int
    local: int
    dense: tuple[tuple[int, int], ...]
    tile: tuple[int, int] = TILE

    @property
    def shared(self) -> bool:
        return False

    def lists(self, attending: Attending) -> Lists | None:
        key_heads, keys = attending.key.shape[1], attending.key.shape[2]
        groups = attending.query.shape[1] // key_heads
        named = {head for layer, head in self.dense if layer == attending.layer}
        if named and max(named) >= attending.heads:
            got = f"head {max(named)} of layer {attending.layer}, which has {attending.heads} key heads"
            raise ConfigError(explain(got, f"key heads 0 to {attending.heads - 1}", "Correct dense_heads"))
        dense = [attending.first + head in named for head in range(key_heads) for _ in range(groups)]
        if all(dense) or self.sinks + self.local >= keys:
            return None
        return blocks.streaming(
            dense,
            keys,
            sinks=self.sinks,
            local=self.local,
            query_length=attending.query.shape[2],
            rows=self.tile[0],
            columns=self.tile[1],
            device=attending.query.device,
        )


@part
@dataclass(frozen=True)
class VerticalSlash:
    """The keys and the distances that the last rows look at most."""

    verticals: int
    slashes: int
    last: int
    sinks: int
    local: int
    tile: tuple[int, int] = TILE

    @property
    def shared(self) -> bool:
        return False

    def lists(self, attending: Attending) -> Lists | None:
        query, key = attending.query, attending.key
        if max(self.verticals, self.slashes) >= key.shape[2]:
            return None
        return blocks.vertical_slash(
            query,
            key,
            verticals=self.verticals,
            slashes=self.slashes,
            last=self.last,
            sinks=self.sinks,
            local=self.local,
            scaling=attending.scaling,
            rows=self.tile[0],
            columns=self.tile[1],
        )


@part
@dataclass(frozen=True)
class TopBlocks:
    """The blocks whose mean query and mean key agree best."""

    count: int | None
    mass: float | None
    similarity: float | None
    tile: tuple[int, int] = TILE

    @property
    def shared(self) -> bool:
        return False

    def lists(self, attending: Attending) -> Lists | None:
        query, key, (rows, columns) = attending.query, attending.key, self.tile
        if self.mass == 1 or (self.count is not None and self.count * columns >= key.shape[2]):
            return None
        return blocks.top_blocks(
            query,
            key,
            count=self.count,
            mass=self.mass,
            similarity=self.similarity,
            scaling=attending.scaling,
            rows=rows,
            columns=columns,
        )


def check_tile(tile: Sequence[int]) -> tuple[int, int]:
    """The size of blocks as a pair; ConfigError for anything but two numbers of at least 1."""
    fits = isinstance(tile, Sequence) and not isinstance(tile, str) and len(tile) == 2
    if not fits or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in tile):
        accepted = f"queries and keys of a block, such as {TILE}"
        raise ConfigError(explain(f"tile={tile!r}", accepted, "Leave it out, unless you compare"))
    return tile[0], tile[1]
