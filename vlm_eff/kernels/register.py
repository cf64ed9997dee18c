"""Launchers of kernels as operations of torch: then `torch.compile` passes them by and FLOPs are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "vlm_eff"


def register(
    name: str,
    launch: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    contents: bool = False,
) -> Callable[..., Any]:
    """Make `torch.ops.vlm_eff.<name>` of a launcher and return what calls it.

    launch: allocates its outputs and launches; its annotations are the schema (Tensor, Tensor | None, int, float, bool,
            str, list[Tensor]; returns Tensor or a tuple of them). It must change none of its arguments
    fake:   the same arguments -> outputs of the right shape and type without contents
    flops:  the same arguments with shapes in place of tensors, and `out_shape` -> floating-point operations, two for a
            multiplication with addition, as `torch.utils.flop_counter` counts
    contents: give `flops` the tensors themselves, where the work depends on what is in them
    """
    operation = torch.library.custom_op(f"{NAMESPACE}::{name}", launch, mutates_args=())
    operation.register_fake(fake)

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flops(*args, out_shape=out_shape, **kwargs)

    def count_contents(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return flops(*args, out_shape=[tuple(out.shape) for out in tree_leaves(out_val)], **kwargs)

    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    register_flop_formula(packet, get_raw=contents)(count_contents if contents else count)
    return operation
