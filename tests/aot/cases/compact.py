"""Keeping rows: what follows a decoder layer's sequence in one launch, and the entries of a cache by head."""

from __future__ import annotations

import torch

from tests.aot.case import Case, Expect
from vlm_eff.kernels.compact import launch

LENGTH, KEPT = 640, 320


def layer() -> object:
    """Hidden states, rotary tables, positions and a mask."""
    index = torch.arange(KEPT)[None]
    hidden = torch.zeros(1, LENGTH, 4096, dtype=torch.bfloat16)
    tables = [torch.zeros(1, LENGTH, 128, dtype=torch.bfloat16) for _ in range(2)]
    mask = torch.zeros(1, LENGTH, dtype=torch.bool)
    return launch._launch([hidden, *tables, torch.zeros(1, LENGTH, dtype=torch.long), mask], index)


def heads() -> object:
    """Key and value of a cache layer."""
    key = torch.zeros(1, 8, LENGTH, 128, dtype=torch.bfloat16)
    return launch._launch([key, key.clone()], torch.zeros(1, 8, KEPT, dtype=torch.long))


# whole rows move, 16 bytes a thread
_MOVES = {"copy_rows": Expect(needs=("LDG.128", "STG.128"), forbids=("F2F",))}
CASES = {"layer": Case(layer, _MOVES), "heads": Case(heads, _MOVES)}
