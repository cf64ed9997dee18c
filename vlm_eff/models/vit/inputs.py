"""What the inputs of a tower say of its tokens: images, frames, windows and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.vit.kind import Tower
from vlm_eff.models.vit.layout import Layout, Packed, Rows

NAMES = ("grid_thw", "image_sizes")


def layout(tower: Tower, hidden: Tensor, given: dict[str, Any]) -> Layout:
    """How the images lie in the input of the first block: rows, or one after the other."""
    if tower.batched:
        return Rows(hidden.shape[0], hidden.shape[1])
    if given.get("grid_thw") is not None:
        counts = [h * w for t, h, w in torch.as_tensor(given["grid_thw"]).tolist() for _ in range(t)]
    elif given.get("image_sizes") is not None:
        patch = tower.config.patch_size
        counts = [(h // patch) * (w // patch) for h, w in torch.as_tensor(given["image_sizes"]).tolist()]
    else:
        raise CapabilityError(
            explain(
                f"{tower.name} called without grids or sizes of its images",
                "grid_thw or image_sizes",
                "Pass the sizes that the processor made",
            )
        )
    return Packed(tuple(counts), hidden.dim() == 3, hidden.device)


def windows(tower: Tower, full: Layout, given: dict[str, Any]) -> Tensor | None:
    """Number of the window of each token [I, N] in towers where some blocks attend inside windows."""
    if not isinstance(full, Packed) or getattr(tower.root, "fullatt_block_indexes", None) is None:
        return None
    # only this family has windows that permute the sequence
    from transformers.vision_utils import get_vision_window_index

    root: Any = tower.root
    _, bounds = get_vision_window_index(given["grid_thw"], root.spatial_merge_size, root.window_size, root.patch_size)
    bounds = torch.as_tensor(bounds, device=full.device)
    places = torch.arange(sum(full.counts), device=full.device)
    return full.pad(torch.searchsorted(bounds[1:].contiguous(), places, right=True))


def padding(mask: Any, full: Layout) -> Tensor | None:
    """True for patches that no other may see [I, N] in towers that pad images; None when there are none."""
    if not isinstance(full, Rows) or not isinstance(mask, Tensor) or mask.dim() != 4:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    hidden = ~seen.any(2).any(1).expand(full.images, -1)
    return hidden if bool(hidden.any()) else None
