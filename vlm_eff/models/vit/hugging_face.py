"""transformers: any pre-norm tower whose attention goes through the attention interface, alone or inside a VLM."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, UnsupportedModelError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.tap import install_tap
from vlm_eff.models.vit.kind import TOWERS, Bias, Saw, Tower, named

_ATTENTION = ("self_attn", "attention", "attn")
_NORMS = ("norm2", "layer_norm2", "layernorm_after", "ffn_norm")
_MLPS = ("mlp", "feed_forward")
_STACKS = ("encoder.layers", "encoder.layer", "blocks", "transformer.layers", "layers", "layer")
_PATCHERS = ("embeddings.patch_embedding", "embeddings.patch_embeddings", "patch_embed", "patch_conv")


def find_hugging_face(model: nn.Module) -> Tower | None:
    """The tower of a transformers vision model, with or without a head, or of a model that has a `vision_model`."""
    if not type(model).__module__.startswith("transformers."):
        return None
    for root in (model, getattr(model, "base_model", None), getattr(model, "vision_model", None)):
        blocks = None if root is None else _find(root, _STACKS)
        if blocks is not None and _find(root, _PATCHERS) is not None:
            return describe(root, tuple(blocks))
    return None


def describe(root: nn.Module, blocks: tuple[nn.Module, ...]) -> Tower:
    """The parts of a transformers tower.

    Raises:
        UnsupportedModelError: its blocks are no pre-norm blocks, or its attention does not use the interface.
    """
    norms = [named(block, _NORMS) for block in blocks]
    mlps = [named(block, _MLPS) for block in blocks]
    attention = [named(block, _ATTENTION) for block in blocks]
    patcher = _find(root, _PATCHERS)
    if None in (*norms, *mlps, *attention, patcher) or any(_taps(module) is None for module in attention):
        raise UnsupportedModelError(
            explain(
                f"the tower {type(root).__name__}, whose blocks are {type(blocks[0]).__name__}",
                "pre-norm blocks with attention through transformers' attention interface (CLIP, SigLIP, DINOv2, ViT, "
                "Pixtral, InternVL, Qwen-VL)",
                "Use a plugin that acts behind the tower",
            )
        )
    packed = patcher is not None and _find(root, _PATCHERS[:2]) is None
    return Tower(
        name=f"transformers {type(root).__name__}",
        root=root,
        blocks=blocks,
        norms=tuple(norms),
        mlps=tuple(mlps),
        prefix=_prefix(root),
        patcher=patcher,
        watch=_watch,
        batched=not packed,
        config=root.config,
    )


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a block."""
    found = named(block, _ATTENTION)
    assert found is not None
    return found


def _watch(tower: Tower, blocks: list[int], bias: Bias, saw: Saw, undo: Undo) -> None:
    """A tap on the attention function: it sees queries and keys, and may exchange the mask."""

    def sink(index: int, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("cu_seq_lens_q") is not None:
            raise CapabilityError(
                explain(
                    "a tower plugin under flash attention's packed images",
                    "eager and sdpa towers",
                    'Load the model with attn_implementation={"vision_config": "sdpa"}',
                )
            )
        saw(index, lambda: (query, key))
        made = bias(index, mask, query, key.shape[2])
        return None if made is None else _Biased(made)

    install_tap({index: attention_of(tower.blocks[index]) for index in blocks}, sink, undo)


@dataclass(frozen=True)
class _Biased:
    """Attends with another mask."""

    mask: Tensor

    def attend(self, run: Callable[..., Any], module: nn.Module, states: Any, mask: Any, kwargs: Any) -> Any:
        """See `tap.Instead`."""
        return run(module, *states, self.mask, **kwargs)


def _prefix(root: nn.Module) -> int:
    """Leading tokens that are no patches."""
    embeddings = getattr(root, "embeddings", None)
    has = sum(getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding"))
    distilled = getattr(embeddings, "distillation_token", None) is not None
    registers = getattr(root.config, "num_register_tokens", 0) if has else 0
    return min(has, 1) + int(distilled) + int(registers or 0)


def _taps(attention: Any) -> Any:
    """The eager function of an attention module's family, which marks those that use the interface."""
    return getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)


def _find(root: nn.Module, paths: tuple[str, ...]) -> Any:
    for path in paths:
        found: Any = root
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    return None


TOWERS.add("transformers", find_hugging_face)
