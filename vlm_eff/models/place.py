"""Models whose layers lie on several devices (`device_map`): what is known of a call follows its hidden states.

accelerate moves what a layer is called with when the layer runs, which is after hooks of torch that stand in front of
it. So they ask here where the layer will run, and bring everything there themselves.
"""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate runs a module; None where it leaves it alone."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return None


def home_of(module: nn.Module) -> torch.device:
    """The device on which a module computes, whether its weights lie there or are brought each time."""
    device = next((execution_device(part) for part in module.modules() if execution_device(part) is not None), None)
    if device is not None:
        return device
    held = next(module.parameters()).device
    return torch.device("cpu") if held.type == "meta" else held


def moved(value: Any, device: torch.device, seen: dict[int, Any] | None = None) -> Any:
    """Tensors, and dataclasses, tuples, lists and dicts of them, on a device; everything else as it is."""
    seen = {} if seen is None else seen
    if id(value) not in seen:
        # what was moved is held beside what came of it, so that ids stay theirs
        seen[id(value)] = (value, _moved(value, device, seen))
    return seen[id(value)][1]


def _moved(value: Any, device: torch.device, seen: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(moved(one, device, seen) for one in value)
    if isinstance(value, dict):
        return {name: moved(one, device, seen) for name, one in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    made = copy.copy(value)
    for field in fields(value):
        # frozen ones too: nobody else has seen the copy
        object.__setattr__(made, field.name, moved(getattr(value, field.name), device, seen))
    return made
