"""Random cache entries with padding, two modalities and protected ones, for the tests of merging."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Entries:
    """B=3, Hkv=2, S=12; row 1 is padded on the left, row 2 on the right; head 0 and head 1 keep different entries."""

    keys: Tensor
    values: Tensor
    multiplicity: Tensor
    kept: Tensor
    present: Tensor
    modality: Tensor
    protected: Tensor
    mass: Tensor

    def row(self, row: int) -> "Entries":
        return Entries(*(getattr(self, field.name)[row : row + 1] for field in fields(self)))


def entries(seed: int = 0, dtype: torch.dtype = torch.float64) -> Entries:
    g = torch.Generator().manual_seed(seed)
    rows, heads, size, width = 3, 2, 12, 4
    present = torch.ones(rows, heads, size, dtype=torch.bool)
    present[1, :, :3] = False
    present[2, :, 9:] = False
    protected = torch.zeros_like(present)
    protected[:, :, 4] = protected[:, :, 7] = True
    kept = torch.rand(rows, heads, size, generator=g) < 0.4
    kept[:, :, 4], kept[:, :, 7] = True, False
    # all image entries of the last row's first head go: they have nobody to go into
    modality = (torch.arange(size) % 3 == 1).to(torch.int8).expand(rows, size).clone()
    kept[2, 0, modality[2] == 1] = False
    kept[2, 0, 4] = True
    keys, values = torch.randn(2, rows, heads, size, width, generator=g, dtype=torch.float64)
    keys[~present] = torch.nan
    values[~present] = torch.inf
    multiplicity = torch.randint(1, 4, (rows, heads, size), generator=g).double()
    mass = torch.rand(rows, heads, size, generator=g, dtype=torch.float64)
    return Entries(
        keys.to(dtype), values.to(dtype), multiplicity.to(dtype), kept, present, modality, protected, mass.to(dtype)
    )
