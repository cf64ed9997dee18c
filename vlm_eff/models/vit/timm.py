"""timm: VisionTransformer with plain blocks (ViT, DeiT, DINOv2 and SigLIP weights, registers, any pooling head)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_eff.core.errors import UnsupportedModelError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models import seams
from vlm_eff.models.vit.kind import TOWERS, Bias, Saw, Tower, is_a

_HOME = "timm.models.vision_transformer"


def find_timm(model: nn.Module) -> Tower | None:
    """The tower of a timm model; models of open_clip that wrap one are looked through."""
    trunk = getattr(getattr(model, "visual", model), "trunk", model)
    if not type(trunk).__module__.startswith("timm."):
        return None
    blocks = getattr(trunk, "blocks", ())
    plain = is_a(trunk, f"{_HOME}.VisionTransformer") and all(is_a(block, f"{_HOME}.Block") for block in blocks)
    if not plain or any(type(block.attn).__name__ != "Attention" for block in blocks):
        raise UnsupportedModelError(
            explain(
                f"{type(trunk).__name__} of timm",
                "VisionTransformer with plain blocks (vit_*, deit_*, with registers, DINOv2 and SigLIP weights)",
                "Use such a model; hierarchical, convolutional and rotary towers of timm are not known here",
            )
        )
    return Tower(
        name="timm VisionTransformer",
        root=trunk,
        blocks=tuple(blocks),
        norms=tuple(block.norm2 for block in blocks),
        mlps=tuple(block.mlp for block in blocks),
        prefix=int(trunk.num_prefix_tokens),
        patcher=trunk.patch_embed,
        watch=_watch,
    )


def _watch(tower: Tower, blocks: list[int], bias: Bias, saw: Saw, undo: Undo) -> None:
    """The attention module takes a mask; queries and keys are read off its one projection."""
    for index in blocks:
        attention = tower.blocks[index].attn

        def mask(module: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> Any:
            made = bias(index, kwargs.get("attn_mask"), args[0], args[0].shape[1])
            return None if made is None else (args, kwargs | {"attn_mask": made})

        def read(module: Any, args: Any, kwargs: Any, output: Tensor, index: int = index, own: Any = attention) -> None:
            split = output.unflatten(-1, (3, own.num_heads, own.head_dim)).permute(2, 0, 3, 1, 4)
            saw(index, lambda: (own.q_norm(split[0]), own.k_norm(split[1])))

        seams.before(attention, mask, undo)
        seams.after(attention.qkv, read, undo)


TOWERS.add("timm", find_timm)
