"""A device that is not there: tensors that say they lie on it are computed on the CPU, and never with others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("far")
FAR = torch.device("far:1")
_COPY = torch.ops.aten.copy_.default
_MOVE = torch.ops.aten._to_copy.default


class Far(Tensor):
    """A tensor on the device `FAR`; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Far:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=FAR,
        )  # fmt: skip
        made.inner = inner
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()


class _Made(TorchFunctionMode):
    """Tensors from numbers, which torch makes out of sight of dispatch modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and (device := kwargs.get("device")) is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(device)
        return func(*args, **kwargs)


@contextmanager
def two_devices() -> Iterator[None]:
    """While open, there is the device `FAR` beside the CPU, and what mixes them raises, as it does on a GPU."""
    with _Dispatched(), _Made():
        yield


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    wanted, far = kwargs.get("device"), any(isinstance(one, Far) for one in tensors)
    if far and func not in (_COPY, _MOVE) and any(not isinstance(one, Far) and one.dim() for one in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    if wanted is not None:
        far = torch.device(wanted).type == FAR.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner = tree_map(lambda one: one.inner if isinstance(one, Far) else one, (args, kwargs))
    made = func(*inner[0], **inner[1])
    known = {id(one.inner): one for one in tensors if isinstance(one, Far)}

    def place(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        # what is changed in place stays the same object
        return known[id(one)] if id(one) in known else Far(one)

    return tree_map(place, made) if far else made


def send(module: nn.Module) -> None:
    """Put the weights of a module on `FAR`."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(Far(weight.detach()), requires_grad=False))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, Far(buffer))
