"""Towers found: alone, under a runtime of their own, or inside a vision-language model, under that model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

import vlm_eff.models.vit.hugging_face
import vlm_eff.models.vit.open_clip
import vlm_eff.models.vit.timm  # noqa: F401  (registers the library)
from vlm_eff.core.errors import StateError, UnsupportedModelError, explain
from vlm_eff.core.handle import Handle, Undo
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import Stats, VisualTokens
from vlm_eff.core.resources import Resource
from vlm_eff.core.tower_report import TowerReport
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.family import FAMILIES
from vlm_eff.models.vit.cells import cell_side
from vlm_eff.models.vit.hugging_face import describe
from vlm_eff.models.vit.kind import TOWERS, Tower
from vlm_eff.models.vit.runtime import TowerRuntime


def lone_tower(model: Any) -> Tower | None:
    """The tower of a model that is no vision-language model of a known family; None when it has none."""
    if not isinstance(model, nn.Module) or getattr(getattr(model, "config", None), "model_type", None) in FAMILIES:
        return None
    found = (TOWERS.get(library)(model) for library in TOWERS)
    tower = next((tower for tower in found if tower is not None), None)
    if tower is None and getattr(model, "main_input_name", None) == "pixel_values":
        raise UnsupportedModelError(
            explain(
                f"the vision model {type(model).__name__}",
                "transformers towers with pre-norm blocks, timm VisionTransformer, open_clip VisionTransformer",
                "Use such a tower: convolutional and hierarchical ones have no tokens that could be merged here",
            )
        )
    return tower


def tower_runtime(
    adapter: Adapter, plugins: tuple[Plugin, ...], tell: Callable[[Tensor], None]
) -> TowerRuntime | NoTower:
    """The runtime of the tower inside a vision-language model; without a plugin that acts there it does nothing.

    tell: is given which patches stayed, behind each run
    """
    if not any(Resource.TOWER_TOKENS in plugin.writes for plugin in plugins):
        return NoTower()
    tower = describe(adapter.tower, tuple(adapter.blocks))
    runtime = TowerRuntime(replace(tower, side=cell_side(adapter.core.config)), plugins)
    runtime.tell = tell
    return runtime


class LoneTower:
    """What a handle asks of a tower without a language model."""

    def __init__(self, tower: Tower, plugins: tuple[Plugin, ...]) -> None:
        self.active = True
        self.handle: Handle | None = None
        self.weights: dict[str, Any] = {}
        self.penalties: list[Tensor] = []
        self._name = tower.name
        self._plugins = plugins
        self._towers = TowerRuntime(tower, plugins)

    def install(self, undo: Undo) -> None:
        """Put the hooks on."""
        self._towers.install(lambda: self.active, undo)

    def stats(self) -> Stats:
        """What each run of the tower computed."""
        reports = self._towers.ledger.reports()
        return Stats(tuple(p.name for p in self._plugins), self._name, calls=len(reports), towers=reports)

    def reset(self) -> None:
        """Forget all reports."""
        self._towers.ledger.reset()

    def survivors(self, layer: int) -> list[Tensor]:
        """Refused: there is no decoder."""
        raise _no_decoder()

    def visual(self, layer: int) -> list[VisualTokens]:
        """Refused: there is no decoder."""
        raise _no_decoder()

    def kv_modalities(self, layer: int) -> Tensor:
        """Refused: there is no decoder."""
        raise _no_decoder()

    def kv_contents(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        raise _no_decoder()

    def kv_positions(self, layer: int) -> Tensor:
        """Refused: there is no decoder."""
        raise _no_decoder()

    def tower_groups(self, block: int) -> list[tuple[Tensor, Tensor]]:
        """See `Handle.tower_groups`."""
        return self._towers.ledger.groups(block)


class NoTower:
    """Stands where a tower's runtime would, and is its own empty ledger."""

    @property
    def ledger(self) -> NoTower:
        """Nothing is ever noted."""
        return self

    def install(self, active: Callable[[], bool], undo: Undo) -> None:
        """No hooks."""

    def reset(self) -> None:
        """Nothing to forget."""

    def reports(self) -> list[TowerReport]:
        """None."""
        return []

    def groups(self, block: int) -> list[tuple[Tensor, Tensor]]:
        """Refused: no plugin acts in the tower."""
        accepted = "methods that act inside the vision tower, such as tome"
        raise StateError(explain("tower tokens of a handle without a plugin there", accepted, "Attach one of them"))


def _no_decoder() -> StateError:
    return StateError(
        explain("a decoder layer of a vision tower alone", "stats() of a tower", "Attach to a vision-language model")
    )
