"""What the author of an operation declares, so that its kernels are compiled and checked without a GPU.

One file an operation, `tests/aot/cases/OP.py`:

    def _call() -> object:
        return launch._launch(query, key, ...)        # small CPU tensors, made here; dtype bf16 or fp16

    CASES = {
        "d128": Case(
            _call,
            {
                "window_scores_kernel": Expect(
                    needs={80: ("HMMA", "LDGSTS.128"), 90: ("HGMMA", "LDGSTS.128"), 100: ("UTCHMMA",)},
                    forbids=("I2F",),
                    elements=128 * 64,                # what one turn of the hot loop works on: the tile
                    budget=15.0,                      # instructions of a thread per element, at most
                )
            },
        )
    }

then `python -m tests.aot.record OP` writes `tests/aot/expectations/OP.json`, which is committed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.aot.stub import ARCHITECTURES

# what a matrix product becomes, by architecture
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
Opcodes = tuple[str, ...]


@dataclass(frozen=True)
class Expect:
    """What must hold of one kernel of a case.

    needs:    opcodes that must be there, by architecture or the same for all: "LDGSTS.128" is that base with that
              modifier, "HMMA|HGMMA" one of two
    forbids:  opcodes that must not be there
    elements: what one turn of the hot loop works on (tests/aot/sass.py says which loop): score elements of a tile,
              cached numbers of a tile; by loop in the order of the code where they differ. None: not counted
    budget:   most instructions of a thread per element (instructions of the loop x threads / elements): of every hot
              loop, or one for each. None: only compared with the recorded number
    """

    needs: Mapping[int, Opcodes] | Opcodes = ()
    forbids: Mapping[int, Opcodes] | Opcodes = ()
    elements: float | tuple[float, ...] | None = None
    budget: float | tuple[float, ...] | None = None

    def wanted(self, arch: int) -> Opcodes:
        return _at(self.needs, arch)

    def unwanted(self, arch: int) -> Opcodes:
        return _at(self.forbids, arch)


@dataclass(frozen=True)
class Case:
    """A launch to compile.

    call:    runs the operation's own launcher on CPU tensors; nothing is executed, outputs stay as allocated
    kernels: by name of the @triton.jit function. A kernel that is launched and not named is held to the general limits
             (no stack, shared memory) and to what was recorded; one that is named and not launched is a failure
    archs:   architectures to compile for
    """

    call: Callable[[], object]
    kernels: Mapping[str, Expect] = field(default_factory=dict)
    archs: tuple[int, ...] = ARCHITECTURES


def _at(opcodes: Mapping[int, Opcodes] | Opcodes, arch: int) -> Opcodes:
    return opcodes.get(arch, ()) if isinstance(opcodes, Mapping) else opcodes


def operations() -> list[str]:
    """Names of the operations that have cases."""
    package = importlib.import_module("tests.aot.cases")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def cases(operation: str) -> dict[str, Case]:
    """The cases of one operation."""
    return dict(importlib.import_module(f"tests.aot.cases.{operation}").CASES)
