"""The input of a block's first attention, as the block's own adaptive norm makes it from the time and the prompt."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.denoise.blocks import Block


def check_norm(block: Block) -> None:
    """Raise `CapabilityError` where the modulated input of a block cannot be computed apart."""
    if _way(block.module) is None:
        raise CapabilityError(
            explain(
                f"{type(block.module).__name__}, whose adaptive norm is of an unknown form",
                "blocks with a norm1 that takes the time, or with a scale_shift_table",
                "Use first_block() or forecast()",
            )
        )


def modulated(block: Block, given: dict[str, Any]) -> Tensor:
    """Normed and modulated input of the block's attention [R, L, D], without its attention being run.

    given: the block's arguments by name; of a block that `check_norm` lets pass
    """
    made = _way(block.module)(block.module, given[block.main], given)
    return made[0] if isinstance(made, tuple) else made


def _way(module: nn.Module) -> Any:
    norm = getattr(module, "norm1", None)
    if norm is None:
        return None
    takes = set(inspect.signature(type(norm).forward).parameters)
    if isinstance(getattr(module, "scale_shift_table", None), Tensor):
        return _by_table
    if {"timestep", "class_labels", "hidden_dtype"} <= takes and getattr(norm, "emb", None) is not None:
        return _by_class
    if {"encoder_hidden_states", "temb"} <= takes:
        return _by_both
    if "emb" in takes:
        return _by_embedding
    return None


def _by_embedding(module: Any, hidden: Tensor, given: dict[str, Any]) -> Any:
    return module.norm1(hidden, emb=given["temb"])


def _by_both(module: Any, hidden: Tensor, given: dict[str, Any]) -> Any:
    return module.norm1(hidden, given["encoder_hidden_states"], given["temb"])


def _by_class(module: Any, hidden: Tensor, given: dict[str, Any]) -> Any:
    return module.norm1(hidden, given["timestep"], given["class_labels"], hidden_dtype=hidden.dtype)


def _by_table(module: Any, hidden: Tensor, given: dict[str, Any]) -> Tensor:
    # shift and scale stand first, as [R, 6, D], [R, 6 * D] or, with a time for every token, [R, L, 6, D]
    table, name = module.scale_shift_table, "temb" if "temb" in given else "timestep"
    time, width = given[name], module.scale_shift_table.shape[-1]
    if time.dim() == 4 or (time.dim() == 3 and time.shape[-1] != width):
        # one time a token
        values = table.reshape(1, 1, -1, width) + time.reshape(time.shape[0], time.shape[1], -1, width)
        shift, scale = values[:, :, 0], values[:, :, 1]
    else:
        values = table.reshape(1, -1, width) + time.reshape(hidden.shape[0], -1, width)
        shift, scale = values[:, :1], values[:, 1:2]
    made = module.norm1(hidden.to(scale.dtype)) * (1 + scale) + shift
    return made.to(hidden.dtype)
