"""Attention heads that are spread over ranks by tensor parallelism: the only place where ranks talk to one another.

Under a `tp_plan` hidden states are the same on every rank and heads are not: a rank has queries, keys and a cache of
its own heads alone. What plugins are shown is made of all heads: it is gathered here, in the order of the heads, before
anything is ranked or added up. Every rank then decides from the same bits, so ties break alike, and carries out what
concerns its own heads. How many heads a rank has is read off the tensors themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain

# what a DTensor has and a plain tensor has not
_MESH = "device_mesh"


@dataclass(frozen=True)
class Ranks:
    """The ranks that share the heads of one decoder; without tensor parallelism one that has them all.

    group: of torch.distributed; queries, keys: heads that the whole model has in a layer
    """

    queries: int
    keys: int
    size: int = 1
    rank: int = 0
    group: Any = None

    @property
    def several(self) -> bool:
        """True when heads are spread over more than one rank."""
        return self.size > 1

    def all_queries(self, states: Tensor, dim: int = 1) -> Tensor:
        """States of all query heads, of those of this rank; dimension `dim` counts heads."""
        return self._whole(states, dim, self.queries)

    def all_keys(self, states: Tensor, dim: int = 1) -> Tensor:
        """States of all key heads, of those of this rank; dimension `dim` counts heads."""
        return self._whole(states, dim, self.keys)

    def first_key(self, local: int) -> int:
        """Number of this rank's first key head, when it has `local` of them."""
        return self.rank * local if local < self.keys else 0

    def own(self, states: Tensor) -> Tensor:
        """This rank's part of states of all heads [B, heads, ...]."""
        count = states.shape[1] // self.size
        return states if self.size == 1 else states.narrow(1, self.rank * count, count).contiguous()

    def _whole(self, states: Tensor, dim: int, heads: int) -> Tensor:
        local = states.shape[dim]
        if self.size == 1 or local == heads:
            return states
        if local * self.size != heads:
            raise uneven(f"{local} of {heads} heads on rank {self.rank} of {self.size}")
        return torch.cat(self.gather(states), dim)

    def gather(self, states: Tensor) -> list[Tensor]:
        """The same tensor of every rank, in their order; all of them have to ask, and for tensors of one shape."""
        states = states.detach().contiguous()
        parts = [torch.empty_like(states) for _ in range(self.size)]
        torch.distributed.all_gather(parts, states, group=self.group)
        return parts


def ranks_of(config: Any, decoder: nn.Module) -> Ranks:
    """How the heads of a decoder lie on ranks, as its weights say."""
    queries, keys = int(config.num_attention_heads), int(config.num_key_value_heads)
    group = _group(decoder)
    if group is None:
        return Ranks(queries, keys)
    return Ranks(queries, keys, torch.distributed.get_world_size(group), torch.distributed.get_rank(group), group)


def is_spread(module: nn.Module) -> bool:
    """True when tensor parallelism spreads weights of a module over ranks."""
    return _group(module) is not None


def _group(module: nn.Module) -> Any:
    """The ranks that share the weights of a module, or None; data parallelism that shards weights is another matter."""
    for weight in module.parameters():
        if is_split(weight):
            mesh = getattr(weight, _MESH)
            names = mesh.mesh_dim_names or ("tp",) * mesh.ndim
            if "tp" in names:
                return mesh.get_group("tp") if mesh.ndim > 1 else mesh.get_group()
    return None


def is_split(weight: Tensor) -> bool:
    """True for a weight of which this process has a part (a DTensor)."""
    return hasattr(weight, _MESH)


def own_part(weight: Any) -> Any:
    """A weight as a plain tensor: the part of this process where it is spread over ranks."""
    return weight.to_local() if weight is not None and is_split(weight) else weight


def check_heads(attention: nn.Module, ranks: Ranks) -> None:
    """Raise `CapabilityError` for a layer whose queries and keys are not split alike and into equal parts."""
    found = []
    for name, whole in (("q_proj", ranks.queries), ("k_proj", ranks.keys)):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if isinstance(weight, Tensor) and is_split(weight):
            local = own_part(weight).shape[0] / attention.head_dim  # type: ignore[operator]
            found.append((local, whole))
    alike = len(found) in (0, 2) and all(local * ranks.size == whole for local, whole in found)
    if not alike:
        shares = " and ".join(f"{local:g} of {whole}" for local, whole in found)
        raise uneven(f"{shares} heads of a layer on rank {ranks.rank} of {ranks.size}")


def uneven(got: str) -> CapabilityError:
    """The refusal of heads that cannot be put together again."""
    return CapabilityError(
        explain(
            got,
            "query and key heads that are each split into equal parts, or on every rank",
            "Choose a number of ranks that divides both, or leave the tensor parallelism out",
        )
    )
