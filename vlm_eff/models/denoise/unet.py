"""What a UNet of diffusers is made of, as its skip connections see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_eff.core.errors import CapabilityError, ConfigError, explain

# blocks that make one skip connection a layer and one more where they shrink the map, or take one a layer
_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "SimpleCrossAttnDownBlock2D")
_DOWN += ("ResnetDownsampleBlock2D", "DownBlockMotion", "CrossAttnDownBlockMotion", "DownBlock3D")
_DOWN += ("CrossAttnDownBlock3D", "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "SimpleCrossAttnUpBlock2D")
_UP += ("ResnetUpsampleBlock2D", "UpBlockMotion", "CrossAttnUpBlockMotion", "UpBlock3D")
_UP += ("CrossAttnUpBlock3D", "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")
# what a layer of a block is made of, in the order in which it runs
_LAYER = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")


@dataclass(frozen=True)
class Place:
    """A layer of a UNet: number of its block on the way down or up, and of the layer in it, both 0-based.

    What shrinks the map counts as one more layer of its block; the input convolution is block -1.
    """

    block: int
    layer: int


@dataclass(frozen=True)
class SkipConnection:
    """A tensor that goes from the way down to the way up: which layer makes it, which one takes it."""

    made: Place
    taken: Place


def skip_connections(unet: nn.Module) -> list[SkipConnection]:
    """Skip connections of a UNet, counted from its input.

    Raises:
        CapabilityError: a transformer, or a UNet with blocks that are built in another way.
    """
    downs, ups = _blocks(unet)
    made = [Place(-1, 0)]
    for number, block in enumerate(downs):
        made += [Place(number, layer) for layer in range(len(block.resnets) + bool(_samplers(block, "down")))]
    taken = [Place(number, layer) for number, block in enumerate(ups) for layer in range(len(block.resnets))]
    if len(made) != len(taken):
        raise CapabilityError(
            explain(
                f"{type(unet).__name__} with {len(made)} skip connections made and {len(taken)} taken",
                "UNets in which each layer on the way up takes one",
                "Use forecast(), which needs to know nothing of the blocks",
            )
        )
    return [SkipConnection(m, t) for m, t in zip(made, reversed(taken), strict=True)]


def deep_modules(unet: nn.Module, branch: int) -> list[nn.Module]:
    """What runs between the layer that makes skip connection `branch` and the layer that takes it, in that order.

    Blocks of which nothing else runs come as a whole. What the last of them returns is, next to the skip connection,
    the input of the layer that takes it.

    Raises:
        CapabilityError: see `skip_connections`.
        ConfigError: no such skip connection, or nothing below it.
    """
    known = skip_connections(unet)
    downs, ups = _blocks(unet)
    middle: Any = unet.mid_block
    usable = len(known) if middle is not None else len(known) - 1
    if not 0 <= branch < usable:
        raise ConfigError(
            explain(
                f"branch={branch} of {type(unet).__name__} with {len(known)} skip connections",
                f"0 to {usable - 1}",
                "Choose one of these; 0 skips most",
            )
        )
    made, taken = known[branch].made, known[branch].taken
    found: list[nn.Module] = []
    if made.block >= 0:
        block = downs[made.block]
        for layer in range(made.layer + 1, len(block.resnets)):
            found += _layer(block, layer)
        if made.layer < len(block.resnets):
            found += _samplers(block, "down")
    found += downs[made.block + 1 :]
    found += [] if middle is None else [middle]
    found += ups[: taken.block]
    for layer in range(taken.layer):
        found += _layer(ups[taken.block], layer)
    return found


def _layer(block: Any, layer: int) -> list[nn.Module]:
    lists = [getattr(block, name, None) for name in _LAYER]
    return [modules[layer] for modules in lists if modules is not None and len(modules) > layer]


def _samplers(block: Any, way: str) -> list[nn.Module]:
    return list(getattr(block, f"{way}samplers", None) or ())


def _blocks(unet: Any) -> tuple[list[Any], list[Any]]:
    downs, ups = getattr(unet, "down_blocks", None), getattr(unet, "up_blocks", None)
    if downs is None or ups is None or not hasattr(unet, "mid_block"):
        raise CapabilityError(
            explain(
                f"{type(unet).__name__}, which has no way down and up",
                "UNets",
                "For transformers use fora(), first_block() or forecast()",
            )
        )
    strange = [type(b).__name__ for b in downs if not _is_one_of(b, _DOWN)]
    strange += [type(b).__name__ for b in ups if not _is_one_of(b, _UP)]
    if strange:
        raise CapabilityError(
            explain(
                f"{type(unet).__name__} with blocks of {sorted(set(strange))}",
                ", ".join(_DOWN + _UP),
                "Use forecast(), which needs to know nothing of the blocks",
            )
        )
    return list(downs), list(ups)


def _is_one_of(block: nn.Module, names: tuple[str, ...]) -> bool:
    return any(kind.__name__ in names for kind in type(block).__mro__)
