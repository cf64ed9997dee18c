"""What has to be known of a vision tower, and the registry of the libraries that build them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.handle import Undo
from vlm_eff.core.registry import Registry

# (block, mask it was given or None, something of its dtype and device, tokens of this call) -> the mask that its
# attention is to use: bool, or a float bias on keys; None leaves everything as it is
Bias = Callable[[int, Tensor | None, Tensor, int], Tensor | None]
# (block, () -> query and key [b, H, T, Dh]) of the images or windows that attend together, in order
Saw = Callable[[int, Callable[[], tuple[Tensor, Tensor]]], None]


@dataclass(frozen=True)
class Tower:
    """The parts of a vision tower that the runtime needs; describes, never decides.

    name:      library and class; root: what the user or the VLM calls; family: model type, for messages
    blocks:    pre-norm transformer blocks; norms, mlps: of each block, the norm before its MLP and the MLP
    prefix:    leading tokens that are no patches (class token, registers)
    patcher:   the module whose first input are the pixels
    watch:     (tower, blocks, bias, saw, undo) puts hooks or taps on the attention of some blocks
    batched:   images are rows of a batch; else one sequence holds them all
    config:    of a transformers tower; side: patches a side of what becomes one token behind the tower
    """

    name: str
    root: nn.Module
    blocks: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
    prefix: int
    patcher: nn.Module
    watch: Callable[[Tower, list[int], Bias, Saw, Undo], None]
    batched: bool = True
    config: Any = None
    side: int = 1

    @property
    def num_blocks(self) -> int:
        """Transformer blocks."""
        return len(self.blocks)

    @property
    def device_of(self) -> Any:
        """Device of the blocks."""
        return next(self.blocks[0].parameters()).device


# a model -> its tower, or None when it is not of this library
Find = Callable[[nn.Module], Tower | None]

TOWERS: Registry[Find] = Registry("tower library")


def named(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first of several children that a module has."""
    return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def is_a(module: nn.Module, path: str) -> bool:
    """True when the class `path` (module.Class) is among the classes of `module`, without importing it."""
    return any(f"{cls.__module__}.{cls.__name__}" == path for cls in type(module).__mro__)
