"""One operation, several forms: which of them runs, and why another one does not.

Every form has the same signature and means the same; a reference says what that is.

    reference   plain torch, written to be read; works in float64 and may build any matrix
    torch       the fast exact form of PyTorch: processors without a GPU, old GPUs, whatever a kernel does not take
    triton      the fused kernel
    others      that an operation offers by name (`flex`, `compiled`, ...): only on request
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.kernels.triton_here import why_no_kernel

# "auto", or the name of a form
Backend = str
Form = Callable[..., Any]
# the arguments of a form -> why it cannot run on them
Limit = Callable[..., str | None]

_PREFERRED: ContextVar[Backend] = ContextVar("vlm_eff_backend", default="auto")
_OPERATIONS: dict[str, Forms] = {}


class Forms:
    """The forms of one operation."""

    def __init__(
        self,
        name: str,
        *,
        reference: Form,
        torch: Form,
        triton: Form | None = None,
        limits: Mapping[str, Limit] | None = None,
        more: Mapping[str, Form] | None = None,
    ) -> None:
        """limits: for a form, what it cannot do; that of `triton` is asked once a kernel could run here at all."""
        self.name = name
        self.forms: dict[str, Form] = {"reference": reference, "torch": torch}
        if triton is not None:
            self.forms["triton"] = triton
        self.forms |= more or {}
        self._limits = dict(limits or {})
        _OPERATIONS[name] = self

    def run(self, backend: Backend, *args: Any, **kwargs: Any) -> Any:
        """Run the form that `backend` stands for.

        Raises:
            ConfigError: no form has that name.
            CapabilityError: the form cannot run on these arguments.
        """
        asked = backend if backend != "auto" else _PREFERRED.get()
        if asked == "auto" or (backend == "auto" and asked not in self.forms):
            return self.forms[self.automatic(*args, **kwargs)](*args, **kwargs)
        if (reason := self.why_not(asked, *args, **kwargs)) is not None:
            raise CapabilityError(
                explain(f"{self.name} with backend={asked!r}: {reason}", "arguments this backend takes", 'Use "auto"')
            )
        return self.forms[asked](*args, **kwargs)

    def automatic(self, *args: Any, **kwargs: Any) -> str:
        """Name of the form that "auto" means: the kernel on a GPU where nothing speaks against it, else `torch`."""
        if "triton" not in self.forms or not any(t.is_cuda for t in tensors_in((args, kwargs))):
            return "torch"
        reason = self.why_not("triton", *args, **kwargs)
        if reason is None:
            return "triton"
        # the answer is the same; that it takes longer than it could is said once
        if not torch.compiler.is_compiling():
            warnings.warn(f"{self.name} runs without its kernel: {reason}", stacklevel=4)
        return "torch"

    def chosen(self, *args: Any, **kwargs: Any) -> str:
        """Name of the form that "auto" means here and now: the one that is preferred, or the automatic one."""
        asked = _PREFERRED.get()
        return asked if asked in self.forms else self.automatic(*args, **kwargs)

    def why_not(self, backend: Backend, *args: Any, **kwargs: Any) -> str | None:
        """Why the form `backend` cannot run on these arguments; None when it can.

        Raises:
            ConfigError: no form has that name.
        """
        self.check(backend)
        reason = why_no_kernel(tensors_in((args, kwargs))) if backend == "triton" else None
        if reason is None and (limit := self._limits.get(backend)) is not None:
            reason = limit(*args, **kwargs)
        return reason

    def check(self, backend: Backend) -> None:
        """Raise `ConfigError` unless a form has that name."""
        if backend not in self.forms:
            raise ConfigError(
                explain(f"backend={backend!r} for {self.name}", ", ".join(("auto", *self.forms)), "Choose one of them")
            )


def operations() -> dict[str, Forms]:
    """All operations by name, as far as their modules were imported."""
    return dict(sorted(_OPERATIONS.items()))


def why_not(operation: Callable[..., Any], *args: Any, backend: Backend = "triton", **kwargs: Any) -> str | None:
    """Why an operation of this room cannot run on these arguments in the form `backend`; None when it can.

        why_not(window_scores, query, key)     # -> "the tensors are on cpu, and Triton needs a CUDA device"

    Raises:
        ConfigError: this is no operation, or has no such form.
    """
    name = getattr(operation, "__name__", repr(operation))
    if name not in _OPERATIONS:
        raise ConfigError(explain(f"{name}, which is no operation", ", ".join(operations()), "Pass one of these"))
    return _OPERATIONS[name].why_not(backend, *args, **kwargs)


def chosen(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Name of the form in which an operation of this room runs on these arguments with `backend="auto"`."""
    return _OPERATIONS[operation.__name__].chosen(*args, **kwargs)


@contextmanager
def prefer(backend: Backend) -> Iterator[None]:
    """Inside, `backend="auto"` means this form in every operation that has it; operations without it go on as before.

        with prefer("reference"):
            model.generate(**inputs)

    A preferred form that cannot run on the arguments raises, as if it had been asked for.

    Raises:
        ConfigError: no operation has a form of that name.
    """
    known = {"auto"}.union(*(forms.forms for forms in _OPERATIONS.values()))
    if backend not in known:
        raise ConfigError(explain(f"backend={backend!r}", ", ".join(sorted(known)), "Choose one of them"))
    token = _PREFERRED.set(backend)
    try:
        yield
    finally:
        _PREFERRED.reset(token)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from tensors_in(getattr(value, one.name))
