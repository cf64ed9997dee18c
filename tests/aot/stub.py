"""A driver without a GPU: triton compiles for a named architecture, and a launch stops after compiling.

`compiled(call, arch)` runs `call` on CPU tensors. Every kernel launched inside is compiled with the specialisation of
that very launch (pointers and numbers divisible by 16, constants) and nothing is executed: outputs stay as allocated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vlm_eff.kernels import tiles
from vlm_eff.kernels.triton_here import interpreting

ARCHITECTURES = (80, 90, 100)


class _Properties:
    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": tiles.SHARED_MEMORY[self.arch],
            "multiprocessor_count": 132,
            "warpSize": 32,
            "max_num_regs": 65536,
        }


class StubDriver:
    """Answers what triton asks of a driver before it loads a binary."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.utils = _Properties(arch)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        # triton keeps what it compiled by device: one device for each architecture keeps these apart
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def _driver(arch: int) -> Iterator[None]:
    config = triton.runtime.driver
    before = config._active
    config.set_active(StubDriver(arch))
    try:
        yield
    finally:
        # reset_active() would look for a GPU and raise
        config._active = before


@contextmanager
def target(arch: int) -> Iterator[list[Any]]:
    """Inside, launches compile for `arch`; yields the list that collects what they compiled, each once, in order."""
    if interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler: run this in a process without it")
    found: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        made = run(self, *args, grid=grid, warmup=True, **kwargs)
        if all(made is not one for one in found):
            found.append(made)
        return made

    with ExitStack() as stack:
        stack.enter_context(_driver(arch))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
        stack.enter_context(mock.patch.object(tiles, "architecture", lambda device: arch))
        yield found


def compiled(call: Callable[[], object], arch: int) -> list[Any]:
    """What the launches inside `call()` compile for `arch`."""
    with target(arch) as found:
        call()
    return found


@contextmanager
def cache(folder: Path) -> Iterator[None]:
    """Triton's disk cache in `folder`: nothing stale is read, and equal kernels are compiled once."""
    folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(folder)}):
        yield
