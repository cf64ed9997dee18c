"""The pixels of a tower, cell by cell: a cell is the square of patches that become one token behind the tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.tower import Cells
from vlm_eff.models.vit.kind import Tower


def cell_side(config: Any) -> int:
    """Patches a side of a cell, from the config of a vision-language model."""
    vision = config.vision_config
    for owner, name in ((vision, "spatial_merge_size"), (config, "spatial_merge_size"), (config, "scale_factor")):
        if isinstance(found := getattr(owner, name, None), int):
            return found
    if (ratio := getattr(config, "downsample_ratio", None)) is not None:
        return round(1 / ratio)
    if (tokens := getattr(config, "mm_tokens_per_image", None)) is not None:
        return int(vision.image_size // vision.patch_size // round(tokens**0.5))
    return 1


def image_cells(tower: Tower, pixels: Tensor, given: dict[str, Any], lengths: list[int]) -> list[Cells]:
    """The cells of each image, in the order of the tower's tokens.

    pixels: what the patch embedding is given; given: grids or sizes of the images; lengths: tokens of each image
    """
    if given.get("grid_thw") is not None:
        return _packed(tower, pixels, torch.as_tensor(given["grid_thw"]).tolist())
    patch = _patch(tower)
    if given.get("image_sizes") is not None:
        sizes = torch.as_tensor(given["image_sizes"]).tolist()
        return [_raster(image[:, :h, :w], patch, tower.side) for image, (h, w) in zip(pixels, sizes, strict=True)]
    made = [_raster(image, patch, tower.side) for image in pixels]
    if len(made) != len(lengths) or made[0].patches.numel() != lengths[0] - tower.prefix:
        raise CapabilityError(
            explain(
                f"{made[0].patches.numel()} patches of pixels for {lengths[0] - tower.prefix} tokens of {tower.name}",
                "towers with one token a patch",
                "Use another method",
            )
        )
    return made


def _patch(tower: Tower) -> int:
    """Pixels a side of a patch."""
    convolution = next((m for m in tower.patcher.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise CapabilityError(explain(f"{tower.name} without a patch convolution", "towers with one", "Report it"))
    return int(convolution.stride[0])


def _raster(image: Tensor, patch: int, side: int) -> Cells:
    """Cells of one image [3, H, W] whose patches are in raster order."""
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    step, high, wide = patch * side, rows // side, columns // side
    square = image[:, : high * step, : wide * step].unflatten(1, (high, step)).unflatten(3, (wide, step))
    number = torch.arange(rows * columns, device=image.device).view(rows, columns)[: high * side, : wide * side]
    patches = number.unflatten(0, (high, side)).unflatten(2, (wide, side)).permute(0, 2, 1, 3)
    return Cells(square.permute(1, 3, 0, 2, 4), patches.flatten(2))


def _packed(tower: Tower, pixels: Tensor, grids: list[list[int]]) -> list[Cells]:
    """Cells of flattened patches [N, 3 * frames * p * p]; the patches of a cell follow each other."""
    root: Any = tower.root
    side = tower.side
    frames = int(root.config.temporal_patch_size)
    shown = pixels.unflatten(1, (3, frames, -1))[:, :, 0]
    order = _window_order(root, grids)
    made, start = [], 0
    for times, height, width in grids:
        high, wide = height // side, width // side
        for _ in range(times):
            count = height * width
            values = shown[start : start + count].unflatten(0, (high, wide, side**2)).transpose(2, 3)
            place = order[start : start + count] - start
            made.append(Cells(values.unsqueeze(-2), place.view(high, wide, side**2)))
            start += count
    return made


def _window_order(root: Any, grids: list[list[int]]) -> Tensor:
    """Place in the blocks' sequence of each patch [N]: towers with windows permute whole cells."""
    total = sum(t * h * w for t, h, w in grids)
    if getattr(root, "fullatt_block_indexes", None) is None:
        return torch.arange(total)
    from transformers.vision_utils import get_vision_window_index

    side = root.spatial_merge_size
    index, _ = get_vision_window_index(torch.tensor(grids), side, root.window_size, root.patch_size)
    at = torch.argsort(torch.as_tensor(index).cpu())
    return (at[:, None] * side**2 + torch.arange(side**2)).flatten()
