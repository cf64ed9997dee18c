"""Laying packed entries behind one another without quantising them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_eff.kernels.pack import pack
from vlm_eff.kernels.quantise.stored import Quantised

_BY_LINE = ("codes", "scale", "lowest", "place", "exact")


def can_join(first: Quantised, second: Quantised) -> bool:
    """Whether the entries of `second` can be laid behind those of `first`; known without asking the device.

    Not where either was divided by sizes of its own channels (`Format.separable`), whose groups are whole channels, or
    where groups or bytes of `first` have room left.
    """
    form = first.format
    if form != second.format or first.width != second.width or form.separable or not first.count:
        return False
    if any(_kind(getattr(first, name)) != _kind(getattr(second, name)) for name in _BY_LINE):
        return False
    if form.axis == "token":
        return True
    if form.group is None or first.count % form.group or first.count * form.bits % 8:
        return False
    return first.count % 8 == 0 or (first.present is None and second.present is None)


def join(parts: Sequence[Quantised]) -> Quantised:
    """Entries of all parts, in this order, each of which `can_join` the next; reads back as each of them did.

    Takes exactly their bytes, and a bit more for each entry of parts without fillers where others have them.
    """
    axis = 2 if parts[0].format.axis == "token" else 3
    made: dict[str, Tensor | None] = {}
    for name in _BY_LINE:
        tensors = [getattr(part, name) for part in parts]
        made[name] = None if tensors[0] is None else torch.cat(tensors, axis)
    runs: tuple[int, ...] = ()
    if any(part.present is not None for part in parts):
        made["present"] = torch.cat([_present(part) for part in parts], -1)
        runs = _runs(parts)
    count = sum(part.count for part in parts)
    return dataclasses.replace(parts[0], count=count, runs=runs, **made)  # type: ignore[arg-type]


def _present(part: Quantised) -> Tensor:
    if part.present is not None:
        return part.present
    return pack(part.codes.new_ones(*part.codes.shape[:2], part.count), 1)


def _runs(parts: Sequence[Quantised]) -> tuple[int, ...]:
    """Lengths of stretches that have fillers at their end alone; () for one."""
    made = [0]
    for part in parts:
        first, *rest = part.runs or (part.count,)
        made[-1] += first
        made += rest
        if part.present is not None:
            made.append(0)
    runs = tuple(length for length in made if length)
    return runs if len(runs) > 1 else ()


def _kind(tensor: Tensor | None) -> object:
    """What has to be alike for two tensors to be laid behind one another: type, axes, outliers of a group."""
    if tensor is None:
        return None
    return tensor.dtype, tensor.device, tensor.shape[:2], tensor.dim(), tensor.shape[4:]
