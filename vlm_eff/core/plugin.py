"""What a plugin is: it looks at a read-only view and answers with an action; the runtime in `models/` does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_eff.core.cache import (
    CacheGradients,
    CacheNeed,
    CachePlaces,
    CacheRows,
    CacheSite,
    CacheSums,
    Compress,
    LogitSite,
    ScaleLogits,
)
from vlm_eff.core.config import to_dict
from vlm_eff.core.errors import CapabilityError, explain

if TYPE_CHECKING:
    from vlm_eff.core.action import Action, Revive
    from vlm_eff.core.denoise import DenoiseSite, MergeTokens, Predict
    from vlm_eff.core.resources import Resource
    from vlm_eff.core.tower import TowerAction, TowerSite


@dataclass(frozen=True)
class Site:
    """Where plugins are asked: the input of a decoder layer (0-based; layer 0 is "before the language model")."""

    layer: int


@dataclass(frozen=True)
class AttentionSite(Site):
    """Inside a decoder layer, when its queries and keys are made and before they attend; answered with `Attend` or
    `AttendBlocks`.

    What the plugin asks to see of this very layer is there already.
    """


@dataclass(frozen=True)
class QueryRow:
    """A request for the attention logits of the last prompt token.

    layer:  decoder layer whose projections are used (0-based)
    when:   "inside" reads them while the layer attends; "before" computes them from the layer's input, one row only
    rope:   False takes the rotary rotation out (FEATHER's criterion)
    """

    layer: int
    when: str = "inside"
    rope: bool = True


@dataclass(frozen=True)
class QueryRows:
    """A request for the attention of several query rows of a layer; the plugin says which when it looks.

    layer, when, rope: as in `QueryRow`; "before" projects the asked rows and all keys
    """

    layer: int
    when: str = "inside"
    rope: bool = True


@dataclass(frozen=True)
class LayerInput:
    """A request for the hidden states at the input of an earlier decoder layer."""

    layer: int


@dataclass(frozen=True)
class LayerKeys:
    """A request for the keys a decoder layer attends with; `rope` False takes the rotary rotation out."""

    layer: int
    rope: bool = True


@dataclass(frozen=True)
class TowerAttention:
    """A request for attention inside a block of the vision tower.

    block: 0-based; -1 is the last one, None the one whose output becomes the tokens. In a tower that looks through
           windows (Qwen2.5-VL) None or a negative number mean the nearest block at or before it that sees the whole
           image
    row:   "cls" is what the class token pays to each patch, "received" the mean over the queries that may look at it,
           "auto" the first where the tower has a class token and the second elsewhere
    heads: "mean" over the heads' weights, or "joined": one softmax over the heads' logits as if they were a single
           head of their joint width (PruMerge)
    """

    block: int | None = None
    row: str = "received"
    heads: str = "mean"


@dataclass(frozen=True)
class TowerKeys:
    """A request for the keys that a block of the vision tower attends with, rotated where the tower rotates.

    block: as in `TowerAttention`; heads: "mean" over the heads, or "joined" side by side
    """

    block: int | None = None
    heads: str = "mean"


@dataclass(frozen=True)
class TowerFeatures:
    """A request for what the projector is given, in families whose projector works token by token.

    Elsewhere a token is made from several patches, and plugins work on what the projector made of them.
    """


@dataclass(frozen=True)
class TowerKept:
    """A request for what a plugin of the tower kept: 1 for patches that went through it, 0 for those that did not."""


TowerObservation = TowerAttention | TowerKeys | TowerFeatures | TowerKept
Observation = QueryRow | QueryRows | LayerInput | LayerKeys | TowerObservation | CacheNeed


@dataclass(frozen=True)
class BindContext:
    """What a plugin may know of the model when it is attached."""

    family: str
    num_layers: int
    num_blocks: int | None = None
    class_token: bool = False
    width: int = 0
    cache_layers: tuple[int, ...] = ()
    key_heads: int = 0
    training: bool = False

    def check_needs(self, plugin: str, needs: tuple[Observation, ...]) -> None:
        """Raise `CapabilityError` when the model cannot be observed as asked."""
        for need in needs:
            if isinstance(need, TowerAttention | TowerKeys):
                self._check_block(plugin, need)
            elif not isinstance(need, TowerFeatures | TowerKept | CacheRows | CacheSums | CacheGradients | CachePlaces):
                self.check_layer(plugin, need.layer)

    def _check_block(self, plugin: str, need: TowerAttention | TowerKeys) -> None:
        if self.num_blocks is None:
            # bound for its numbers alone, to no model
            return
        whole = need.block is None or (isinstance(need.block, int) and not isinstance(need.block, bool))
        if not whole or (need.block is not None and not -self.num_blocks <= need.block < self.num_blocks):
            raise CapabilityError(
                explain(
                    f"{plugin} wants tower block {need.block!r}, this {self.family} tower has {self.num_blocks}",
                    f"blocks {-self.num_blocks} to {self.num_blocks - 1}",
                    "Choose a block that exists",
                )
            )
        if isinstance(need, TowerAttention) and need.row == "cls" and not self.class_token:
            raise CapabilityError(
                explain(
                    f"{plugin} wants the class token of a {self.family} tower, which has none",
                    'row="received" or row="auto" on towers without a class token',
                    'Use row="received"',
                )
            )

    def check_block(self, plugin: str, block: int) -> None:
        """Raise `CapabilityError` when the vision tower has no such block."""
        if self.num_blocks is not None and not 0 <= block < self.num_blocks:
            raise CapabilityError(
                explain(
                    f"{plugin} wants tower block {block}, this {self.family} tower has {self.num_blocks}",
                    f"blocks 0 to {self.num_blocks - 1}",
                    "Choose a block that exists",
                )
            )

    def check_layer(self, plugin: str, layer: int) -> None:
        """Raise `CapabilityError` when the decoder has no such layer."""
        if self.num_layers == 0:
            raise CapabilityError(
                explain(
                    f"{plugin} acts in a language model, and {self.family} is a vision tower alone",
                    "methods that act inside the vision tower",
                    "Use one of them, such as tome, or attach to the whole vision-language model",
                )
            )
        if not 0 <= layer < self.num_layers:
            raise CapabilityError(
                explain(
                    f"{plugin} wants decoder layer {layer}, this {self.family} model has {self.num_layers}",
                    f"layers 0 to {self.num_layers - 1}",
                    "Choose a layer that exists",
                )
            )


@dataclass(frozen=True)
class Plugin(ABC):
    """A frozen description of what to do; it holds no state and never touches modules, caches or configs."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the method, as in the method table."""

    @property
    @abstractmethod
    def sites(self) -> tuple[Site | TowerSite | CacheSite | LogitSite | DenoiseSite, ...]:
        """Where the plugin wants to be asked: at decoder layers, inside the vision tower, or between forward passes."""

    @property
    def needs(self) -> tuple[Observation, ...]:
        """What has to be observed before the plugin is asked."""
        return ()

    @property
    @abstractmethod
    def writes(self) -> frozenset[Resource]:
        """What the plugin changes."""

    @property
    def positions(self) -> str:
        """ "kept": survivors keep their rotary positions; "reindexed": they are numbered anew, without gaps."""
        return "kept"

    @abstractmethod
    def bind(self, context: BindContext) -> Plugin:
        """The plugin for one model, with relative depths resolved; `CapabilityError` when it cannot work there."""

    @abstractmethod
    def at(self, site: Any, view: Any) -> Action | TowerAction | Compress | ScaleLogits | Predict | MergeTokens | None:
        """Decide at a site; None changes nothing.

        A `Site` comes with a `View`, a `TowerSite` with a `TowerView`, a `CacheSite` with a `CacheView`, a `LogitSite`
        with None.
        """

    @property
    def causal(self) -> bool:
        """True when the plugin works only where a token sees nothing but what comes before it."""
        return False

    @property
    def trains(self) -> bool:
        """Whether the plugin may be used, and can learn, while the model is in training mode."""
        return False

    def make_weights(self, context: BindContext) -> Any:
        """The plugin's own weights for one model as a fresh torch module, or None when it has nothing to learn."""
        return None

    @property
    def revives(self) -> bool:
        """True when dropped tokens have to be kept beside the cache, for `again` to bring back."""
        return False

    def again(self, site: Site, view: Any) -> Revive | None:
        """Decide at a site of a later call without images (a decode step, a turn of text); None brings nothing back."""
        return None

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        """Visual tokens this plugin asks for at each decoder layer, of `visual_tokens` at the start.

        Not a number where the count follows from the scores or the layout: then the report takes what was got.
        """
        return [float(visual_tokens)] * num_layers

    def to_dict(self) -> dict[str, Any]:
        """The plugin with every part and default as a plain dict; `core.config.from_dict` rebuilds it."""
        made: dict[str, Any] = to_dict(self)
        return made
