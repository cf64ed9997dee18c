"""How fast the reference model learns when, and by which optimisers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

_WARMUP_STEPS = 60


@dataclass(frozen=True)
class Schedule:
    """Cosine decay over a number of minutes or of steps; the tower trains alone for the first share."""

    minutes: float | None
    steps: int | None
    learning_rate: float
    tower_share: float

    def progress(self, step: int, seconds: float) -> float:
        """Return the done fraction of the schedule."""
        return step / self.steps if self.steps is not None else seconds / 60 / self.minutes

    def rate(self, progress: float, stage_step: int) -> float:
        """Return the learning rate, warmed up at the start of both stages."""
        warm = min(1.0, (stage_step + 1) / _WARMUP_STEPS)
        return self.learning_rate * warm * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def max_objects(self, progress: float) -> int:
        """Return how many objects scenes may have: fewer when answering starts."""
        if progress < self.tower_share:
            return 4
        answering = (progress - self.tower_share) / (1 - self.tower_share)
        return 2 if answering < 0.06 else 3 if answering < 0.12 else 4


def build_optimisers(model: nn.Module, head: nn.Module, rate: float, name: str) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside blocks and layers and AdamW for the rest, or AdamW for everything."""
    if name not in ("muon", "adamw"):
        raise ValueError(f"got optimiser {name!r}; accepted are muon, adamw; use one of them")
    matrices, decayed, plain = [], [], []
    for parameter_name, parameter in [*model.named_parameters(), *head.named_parameters()]:
        if name == "muon" and parameter.ndim == 2 and ".layers." in parameter_name:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        found.append(muon)
    return found
