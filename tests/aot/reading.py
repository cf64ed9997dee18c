"""What a compiled kernel needs of the machine, read from its binary with the tools that triton brings along."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from tests.aot import sass

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SPILLS = ("STL", "LDL")
# kinds of instructions whose disappearance would go unnoticed in a count
WATCHED = (
    *sass.TENSOR,
    "LDGSTS.128",
    "UTMALDG",
    "LDSM",
    "LDG.128",
    "STG.128",
    "MUFU.EX2",
)


@dataclass(frozen=True)
class Reading:
    """One kernel on one architecture.

    registers: of a thread; stack: bytes of a thread; spills: loads and stores of local memory; shared: bytes of a block
    tensor_memory: columns (sm_100); warps: of a block
    loops: instructions of each hot loop, in the order of the code
    counts: how often each opcode occurs, modifiers included
    """

    name: str
    arch: int
    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    warps: int
    loops: tuple[int, ...]
    counts: Mapping[str, int]

    def has(self, pattern: str) -> bool:
        return any(sass.matches(opcode, pattern) for opcode in self.counts)

    def watched(self) -> list[str]:
        """Which of the opcodes worth watching the kernel has."""
        return [pattern for pattern in WATCHED if self.has(pattern)]

    def per_element(self, elements: float | tuple[float, ...] | None) -> list[float]:
        """Instructions of a thread per element for each hot loop; empty if nobody said what a turn works on."""
        if elements is None:
            return []
        each = elements if isinstance(elements, tuple) else (elements,) * len(self.loops)
        if len(each) != len(self.loops):
            raise ValueError(f"{self.name}: elements of {len(each)} loops given, {len(self.loops)} hot loops found")
        return [turn * 32 * self.warps / one for turn, one in zip(self.loops, each, strict=True)]


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout


def read(kernel: Any) -> Reading:
    """Read one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", str(path))
        text = _run("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage[usage.index(f"Function {kernel.name}:") :])
    if found is None:
        raise ValueError(f"cuobjdump said nothing of {kernel.name}:\n{usage}")
    opcodes = sass.opcodes(text)
    return Reading(
        name=kernel.name,
        arch=kernel.metadata.target.arch,
        registers=int(found.group(1)),
        stack=int(found.group(2)),
        spills=sum(opcode.split(".")[0] in _SPILLS for opcode in opcodes),
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        warps=kernel.metadata.num_warps,
        loops=tuple(len(loop.opcodes) for loop in sass.hot_loops(text)),
        counts={opcode: opcodes.count(opcode) for opcode in sorted(set(opcodes))},
    )


def readings(kernels: list[Any]) -> dict[str, Reading]:
    """All kernels of a case by name; a second specialisation of one is "name#2"."""
    found: dict[str, Reading] = {}
    for kernel in kernels:
        number = 1 + sum(name.partition("#")[0] == kernel.name for name in found)
        found[kernel.name if number == 1 else f"{kernel.name}#{number}"] = read(kernel)
    return found
