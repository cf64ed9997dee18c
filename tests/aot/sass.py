"""Machine code as blocks and loops: how many instructions one turn of a kernel's inner loop takes.

What counts as a hot loop. Blocks are cut at labels and jumps; an edge whose target dominates its source closes a
natural loop, whose body is every block that reaches the source without passing the target. Slow paths that the
assembler puts behind the kernel (waiting again for a barrier, say) so belong to the loop they return to. A loop is hot
if it is innermost, has more than `_SPIN` instructions (shorter ones wait), and multiplies matrices; in a kernel without
any matrix product in a loop, if it reads memory. Instructions of a loop are those of its body, each once, taken or not:
of a branch in the loop both sides count. NOPs do not. A pipelined loop's prologue and epilogue lie outside of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TENSOR = ("HMMA", "HGMMA", "IMMA", "IGMMA", "QGMMA", "BMMA", "DMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA", "UTCOMMA", "QMMA")
_READS = ("LDG", "LDGSTS", "UTMALDG", "LDS", "LDSM", "UBLKCP")
_ENDS = ("EXIT", "RET", "BRX", "JMP", "JMX")
_SPIN = 12
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?)(U?P[T0-9]+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+|\$?[\w$.]+):")
_TARGET = re.compile(r"`\(([^)]+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: the opcode with its dotted modifiers, where it may jump, and whether it falls through."""

    opcode: str
    target: str | None
    falls: bool

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]


@dataclass(frozen=True)
class Loop:
    """A natural loop: its blocks by number, and its opcodes in the order of the text."""

    blocks: frozenset[int]
    opcodes: tuple[str, ...]

    def has(self, bases: tuple[str, ...]) -> bool:
        return any(opcode.split(".")[0] in bases for opcode in self.opcodes)


def read(text: str) -> tuple[list[list[Instruction]], dict[str, int]]:
    """Cut the output of `nvdisasm -c` into blocks; also the block at which each label stands."""
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            if blocks[-1]:
                blocks.append([])
            labels[label.group(1)] = len(blocks) - 1
            continue
        found = _LINE.search(line)
        if not found:
            continue
        negated, guard, opcode, rest = found.groups()
        base = opcode.split(".")[0]
        if base == "NOP":
            continue
        jump = _TARGET.search(rest) if base == "BRA" else None
        # a guard stands before the opcode; BRA.U and BRA.DIV test an operand before the target
        guarded = guard is not None and not (guard == "PT" and not negated)
        conditional = guarded or (base == "BRA" and "," in rest.split("`")[0])
        ends = base in _ENDS or base == "BRA"
        blocks[-1].append(Instruction(opcode, jump.group(1) if jump else None, conditional or not ends))
        if ends:
            blocks.append([])
    return blocks, labels


def _edges(blocks: list[list[Instruction]], labels: dict[str, int]) -> list[set[int]]:
    after: list[set[int]] = []
    for number, block in enumerate(blocks):
        nexts = set()
        if (not block or block[-1].falls) and number + 1 < len(blocks):
            nexts.add(number + 1)
        if block and block[-1].target in labels:
            nexts.add(labels[block[-1].target or ""])
        after.append(nexts)
    return after


def _dominators(after: list[set[int]]) -> dict[int, set[int]]:
    """Of each block that can be reached from the first: the blocks that every way to it passes."""
    order, stack = [], [0]
    while stack:
        block = stack.pop()
        if block not in order:
            order.append(block)
            stack += after[block]
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for target in after[block]:
            before[target].append(block)
    dominate = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            found = set.intersection(*(dominate[one] for one in before[block])) | {block}
            changed |= found != dominate[block]
            dominate[block] = found
    return dominate


def loops(text: str) -> list[Loop]:
    """All natural loops, in the order of the text."""
    blocks, labels = read(text)
    after = _edges(blocks, labels)
    dominate = _dominators(after)
    bodies: dict[int, set[int]] = {}
    for block in dominate:
        for head in after[block] & dominate[block]:
            body, stack = {head}, [block]
            while stack:
                one = stack.pop()
                if one not in body:
                    body.add(one)
                    stack += [source for source in dominate if one in after[source]]
            # two ways back to one head are one loop
            bodies.setdefault(head, set()).update(body)
    return [
        Loop(frozenset(body), tuple(line.opcode for number in sorted(body) for line in blocks[number]))
        for _, body in sorted(bodies.items())
    ]


def hot_loops(text: str) -> list[Loop]:
    """The loops in which the kernel spends its time; see the page's head."""
    working = [loop for loop in loops(text) if len(loop.opcodes) > _SPIN]
    inner = [loop for loop in working if not any(other.blocks < loop.blocks for other in working)]
    multiply = any(loop.has(TENSOR) for loop in working)
    return [loop for loop in inner if loop.has(TENSOR if multiply else _READS)]


def opcodes(text: str) -> list[str]:
    """Every opcode of the kernel, in order."""
    return [line.opcode for block in read(text)[0] for line in block]


def matches(opcode: str, pattern: str) -> bool:
    """Whether `opcode` is what `pattern` names: "LDGSTS.128" needs that base and that modifier; "A|B" is one of two."""
    parts = opcode.split(".")
    wanted = [one.split(".") for one in pattern.split("|")]
    return any(parts[0] == one[0] and set(one[1:]) <= set(parts[1:]) for one in wanted)
