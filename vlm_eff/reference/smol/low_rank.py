"""Low-rank changes of the language model's linear layers (LoRA, arXiv:2106.09685): trained, shipped, then merged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from vlm_eff.core.errors import InputError, explain

_A, _B = ".low_rank_a", ".low_rank_b"


class LowRankLinear(nn.Module):
    """A frozen linear layer and a trained low-rank change beside it: x W' + b + x A' B'."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.low_rank_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        # zero: the first step starts from the model as it was
        self.low_rank_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., out] for [..., in]."""
        change = nn.functional.linear(nn.functional.linear(x, self.low_rank_a), self.low_rank_b)
        return self.base(x) + change


def insert(decoder: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put a low-rank change beside every linear layer of a decoder and return what is to be trained."""
    trained = []
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, last = name.rpartition(".")
            changed = LowRankLinear(layer, rank)
            setattr(decoder.get_submodule(parent), last, changed)
            trained += [changed.low_rank_a, changed.low_rank_b]
    return trained


def changes(decoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained factors by the names of the layers they change."""
    return {
        f"{name}{ending}": getattr(layer, ending[1:]).detach()
        for name, layer in decoder.named_modules()
        if isinstance(layer, LowRankLinear)
        for ending in (_A, _B)
    }


@torch.no_grad()
def merge(decoder: nn.Module, factors: Mapping[str, torch.Tensor]) -> None:
    """Add shipped changes to the weights of a plain decoder, in place.

    Raises:
        InputError: a change for no layer, or one half of a change.
    """
    names = {name.removesuffix(_A).removesuffix(_B) for name in factors}
    layers = {name: layer for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear)}
    for name in sorted(names):
        if name not in layers or name + _A not in factors or name + _B not in factors:
            raise InputError(
                explain(f"a change of {name!r} that does not fit", "both factors of a linear layer", "Ship them anew")
            )
        layers[name].weight += factors[name + _B].float() @ factors[name + _A].float()
