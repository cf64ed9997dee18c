"""open_clip: the visual tower of CLIP models, whose attention is `nn.MultiheadAttention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from vlm_eff.core.errors import UnsupportedModelError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models import seams
from vlm_eff.models.vit.kind import TOWERS, Bias, Saw, Tower, is_a

_HOME = "open_clip.transformer"


def find_open_clip(model: nn.Module) -> Tower | None:
    """The tower of a whole open_clip model or of its `visual`."""
    visual = getattr(model, "visual", model)
    if not type(visual).__module__.startswith("open_clip."):
        return None
    stack = getattr(visual, "transformer", None)
    blocks = tuple(getattr(stack, "resblocks", ()))
    plain = is_a(visual, f"{_HOME}.VisionTransformer") and stack.batch_first
    if not plain or any(not is_a(block, f"{_HOME}.ResidualAttentionBlock") for block in blocks):
        raise UnsupportedModelError(
            explain(
                f"{type(visual).__name__} of open_clip",
                "VisionTransformer with batch-first ResidualAttentionBlock, or a timm ViT inside open_clip",
                "Use such a model, e.g. ViT-B-32",
            )
        )
    return Tower(
        name="open_clip VisionTransformer",
        root=visual,
        blocks=blocks,
        norms=tuple(block.ln_2 for block in blocks),
        mlps=tuple(block.mlp for block in blocks),
        prefix=1,
        patcher=visual.conv1,
        watch=_watch,
    )


def _watch(tower: Tower, blocks: list[int], bias: Bias, saw: Saw, undo: Undo) -> None:
    """Keys carry the bias as a float padding mask; queries and keys are projected once more from the input.

    `nn.MultiheadAttention` projects in one fused call that no hook can see: the second projection costs a sixth of the
    attention's linear maps, where a plugin looks at all.
    """
    for index in blocks:

        def before(module: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> Any:
            hidden = args[0]
            saw(index, lambda: _projected(module, hidden))
            made = bias(index, kwargs.get("attn_mask"), hidden, hidden.shape[1])
            if made is None:
                return None
            return args, kwargs | {"attn_mask": None, "key_padding_mask": made.expand(len(hidden), -1, -1, -1)[:, 0, 0]}

        seams.before(tower.blocks[index].attn, before, undo)


def _projected(attention: nn.MultiheadAttention, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key of an `nn.MultiheadAttention` [B, H, T, Dh]."""
    width, bias = attention.embed_dim, attention.in_proj_bias
    both = linear(hidden, attention.in_proj_weight[: 2 * width], None if bias is None else bias[: 2 * width])
    split = both.unflatten(-1, (2, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    return split[0], split[1]


TOWERS.add("open_clip", find_open_clip)
