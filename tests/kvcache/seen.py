"""What a plugin of the cache sees and decides on a tiny model, and the eager attention it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.contracts import kit
from tests.oracle import decoder_layers
from tests.tiny import visual_mask
from vlm_eff import attach
from vlm_eff.core.cache import CacheSite, Stored
from vlm_eff.core.plugin import Plugin
from vlm_eff.models.kv.view import Entries


@dataclass(frozen=True)
class Planned:
    """Of each layer: its entries, and what would become of them."""

    entries: dict[int, Entries]
    stored: dict[int, Stored]


class Enough(Exception):
    """Ends a call in which everything was seen, before anything is forgotten."""


@dataclass(frozen=True)
class Spy:
    """Stands in for a plugin, does what it would do to nobody, and keeps what it saw."""

    plugin: Plugin
    made: list[Planned]
    name: str = "spy"
    sites: tuple[CacheSite, ...] = (CacheSite("prompt"),)

    def at(self, site: Any, view: Any) -> None:
        action = self.plugin.at(site, view)
        assert action is not None
        entries = {layer: view.entries(layer) for layer in view.layers}
        self.made.append(Planned(entries, {layer: action.store(layer) for layer in action.layers}))
        raise Enough


def planned(model: Any, inputs: dict[str, Any], plugin: Plugin, **kwargs: Any) -> Planned:
    """What `plugin` decides when the prompt is over; kwargs of `generate`."""
    made: list[Planned] = []
    with attach(model, plugin) as handle:
        handle._runtime.cache.compressor.plugins = (Spy(plugin, made),)
        with suppress(Enough):
            kit.generate(model, inputs, 2, **kwargs)
    return made[0]


def eager(family: str, inputs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """The eager model of a family, and its attention weights [B, H, S, S] of every layer over `inputs`."""
    model = kit.model_of(family, "eager")
    return model, list(kit.forward(model, inputs, output_attentions=True).attentions)


@contextmanager
def heads_of(model: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """While open, collect what enters the output projection of a layer [B, Q, H * Dh], call by call."""
    seen: list[Tensor] = []
    projection = decoder_layers(model)[layer].self_attn.o_proj
    hook = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        yield seen
    finally:
        hook.remove()


def text_rows(inputs: dict[str, Any], row: int, count: int) -> list[int]:
    """The last `count` positions of a row that hold text."""
    there = kit.real(inputs)[row] & ~visual_mask(inputs)[row]
    return there.nonzero()[:, 0].tolist()[-count:]
