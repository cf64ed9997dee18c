"""Where hooks are put on a model: the only file that registers any. Each one goes on the undo stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vlm_eff.core.handle import Undo
from vlm_eff.models.aside import Aside


class HookFunction:
    """A hook callable whose deep copy does nothing, so that a copied model does not drive our runtime."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        with Aside():
            return self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> HookFunction:
        return HookFunction(_nothing)


def _nothing(*args: Any) -> None:
    return None


def before(module: nn.Module, call: Callable[..., Any], undo: Undo) -> None:
    """Call `call(module, args, kwargs)` before each forward; it may return new `(args, kwargs)`."""
    undo.push(module.register_forward_pre_hook(HookFunction(call), with_kwargs=True).remove)


def after(module: nn.Module, call: Callable[..., Any], undo: Undo) -> None:
    """Call `call(module, args, kwargs, output)` after each forward; it may return a new output.

    Runs before the capture hooks that transformers installs by itself, so that these see our output.
    """
    undo.push(module.register_forward_hook(HookFunction(call), with_kwargs=True, prepend=True).remove)


@contextmanager
def entering(module: nn.Module, call: Callable[[], object]) -> Iterator[None]:
    """Inside, call `call()` whenever `module` is about to run."""
    undo = Undo()
    before(module, lambda *_: _ignored(call()), undo)
    try:
        yield
    finally:
        undo.run()


def _ignored(made: object) -> None:
    return None
