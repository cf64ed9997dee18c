"""Everything of a model that attaching may touch, as plain values that can be compared."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Hooks, attributes, classes, configs, attention registries and parameters; take it after a warm-up forward."""
    return {
        "attention": sorted(AttentionInterface._global_mapping),
        "masks": sorted(AttentionMaskInterface._global_mapping),
        "modules": {name: _module(module) for name, module in model.named_modules()},
        "configs": {name: _config(module) for name, module in model.named_modules() if hasattr(module, "config")},
        "tensors": {name: _tensor(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
    }


def _module(module: nn.Module) -> dict[str, Any]:
    hooks = {name: [id(h) for h in _values(value)] for name, value in vars(module).items() if "hook" in name}
    kinds = {name: type(value) for name, value in vars(module).items()}
    return {"class": type(module), "attributes": kinds, "hooks": hooks, "training": module.training}


def _values(hooks: Any) -> list[Any]:
    return list(hooks.values()) if isinstance(hooks, dict) else [hooks]


def _config(module: Any) -> Any:
    if not isinstance(module.config, PretrainedConfig):
        return None
    parts = {"": module.config} | {
        name: part for name, part in vars(module.config).items() if isinstance(part, PretrainedConfig)
    }
    return {name: (part.to_dict(), part._attn_implementation, sorted(vars(part))) for name, part in parts.items()}


def _tensor(tensor: Any) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.dtype, tuple(tensor.shape)


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    """Raise with the first thing that is not as it was."""
    after = snapshot(model)
    for part in before:
        if before[part] == after[part]:
            continue
        if not isinstance(before[part], dict):
            raise AssertionError(f"{part}: {before[part]} became {after[part]}")
        changed = [
            name for name in before[part].keys() | after[part] if before[part].get(name) != after[part].get(name)
        ]
        raise AssertionError(f"{part} of {sorted(changed)[:3]} changed")
