"""Where the tokens of an image go through a denoiser: its blocks, their modules, and the grid that they lie on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int, int]
# what blocks call their modules: name -> kind; only those that take the image's tokens alone or beside the text's
_PARTS: dict[str, dict[str, str]] = {
    "BasicTransformerBlock": {"attn1": "self", "attn2": "cross", "ff": "mlp"},
    "JointTransformerBlock": {"attn": "self", "attn2": "self", "ff": "mlp"},
    "FluxTransformerBlock": {"attn": "self", "ff": "mlp"},
    "FluxSingleTransformerBlock": {"attn": "self"},
    "WanTransformerBlock": {"attn1": "self", "attn2": "cross", "ffn": "mlp"},
}
# transformers whose blocks stand in these lists, and whose grid is known
_STACKS: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("transformer_blocks",),
    "PixArtTransformer2DModel": ("transformer_blocks",),
    "SD3Transformer2DModel": ("transformer_blocks",),
    "FluxTransformer2DModel": ("transformer_blocks", "single_transformer_blocks"),
    "WanTransformer3DModel": ("blocks",),
}
SUPPORTED = "UNets with Transformer2DModel, " + ", ".join(sorted(_STACKS))


@dataclass(frozen=True)
class TokenBlock:
    """A block of the denoiser.

    parts: its modules, each with its kind: "self", "cross" or "mlp"
    joint: whether it is called with the text's tokens beside the image's and puts them in front of these itself
    """

    module: nn.Module
    parts: tuple[tuple[str, nn.Module], ...]
    joint: bool = False


@dataclass(frozen=True)
class TokenLevel:
    """Blocks that compute on one grid; parent: the module that is called with it [R, C, rows, columns], in UNets."""

    parent: nn.Module | None
    blocks: tuple[TokenBlock, ...]


def token_levels(denoiser: nn.Module) -> list[TokenLevel]:
    """Where the tokens of an image go through a denoiser, in the order in which it runs; empty where unknown."""
    lists = _STACKS.get(type(denoiser).__name__)
    if lists is not None:
        blocks = [block for name in lists for block in getattr(denoiser, name)]
        return [TokenLevel(None, tuple(_block(block) for block in blocks))]
    parents = [module for module in _in_order(denoiser) if type(module).__name__ == "Transformer2DModel"]
    continuous = [parent for parent in parents if getattr(parent, "is_input_continuous", False)]
    return [TokenLevel(p, tuple(_block(block) for block in p.transformer_blocks)) for p in continuous]


def root_grid(denoiser: nn.Module, named: dict[str, Any], latents: Tensor, notes: dict[Any, Any]) -> Grid | None:
    """Frames, rows and columns of the tokens of a call; None where they lie on no grid.

    notes: of the run, so that what has to be read from the device is read once
    """
    places = named.get("img_ids")
    if isinstance(places, Tensor):
        key = ("grid", places.data_ptr(), tuple(places.shape))
        if key not in notes:
            # the tensor is kept beside the answer, so that its memory cannot become another one's
            notes[key] = (_grid_of(places.reshape(-1, places.shape[-1])), places)
        found: Grid | None = notes[key][0]
        return found
    patch = getattr(denoiser.config, "patch_size", 1)
    sizes = tuple(patch) if isinstance(patch, list | tuple) else (1, patch, patch)
    frames = latents.shape[2] if latents.dim() == 5 else 1
    return frames // sizes[0], latents.shape[-2] // sizes[1], latents.shape[-1] // sizes[2]


def _grid_of(places: Tensor) -> Grid | None:
    # [N, (image, row, column)]: one image, row by row, or none that we know
    rows, columns = (int(places[:, axis].max()) + 1 for axis in (1, 2))
    if rows * columns != places.shape[0]:
        return None
    order = places[:, 1] * columns + places[:, 2]
    return (1, rows, columns) if order.tolist() == list(range(places.shape[0])) else None


def _block(block: nn.Module) -> TokenBlock:
    name = type(block).__name__
    found = ((kind, getattr(block, part, None)) for part, kind in _PARTS.get(name, {}).items())
    parts = tuple((kind, module) for kind, module in found if isinstance(module, nn.Module))
    return TokenBlock(block, parts, name == "FluxSingleTransformerBlock")


def _in_order(unet: nn.Module) -> list[nn.Module]:
    # the middle of a UNet is registered behind its upper half
    halves = [getattr(unet, name, None) for name in ("down_blocks", "mid_block", "up_blocks")]
    return [module for half in halves if half is not None for module in half.modules()]
