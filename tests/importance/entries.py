"""Attention over cache entries for tests: one worked example with known numbers, and random padded batches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SIZE = 8
TEXT, IMAGE = 0, 1


@dataclass(frozen=True)
class Entries:
    """One layer's attention: see `vlm_eff/importance/entry_scores.py`. `groups` key heads."""

    attention: Tensor
    logits: Tensor
    values: Tensor
    keys: Tensor
    row_valid: Tensor
    looks: Tensor
    present: Tensor
    modality: Tensor
    row_modality: Tensor
    groups: int

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention, self.row_valid, self.looks

    @property
    def scored(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return *self.rows, self.groups

    def only_rows(self, first: int, last: int | None = None) -> "Entries":
        cut = slice(first, last)
        return replace(
            self,
            attention=self.attention[:, :, cut],
            logits=self.logits[:, :, cut],
            row_valid=self.row_valid[:, cut],
            looks=self.looks[:, cut],
            row_modality=self.row_modality[:, cut],
        )


def worked(*heads: int) -> Entries:
    """z_ij = ((7i + 3j + 5h) mod 11) / 4, causal; v_j = (cos j, sin 2j); columns 1..4 are an image. float64."""
    heads = heads or (0,)
    i, j = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
    logits = torch.stack([((7 * i + 3 * j + 5 * h) % 11) / 4 for h in heads]).double()[None]
    looks = (j <= i)[None]
    spread = torch.arange(SIZE).double()
    values = torch.stack([spread.cos(), (2 * spread).sin()], -1).expand(1, len(heads), SIZE, 2)
    kinds = torch.tensor([[TEXT, IMAGE, IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT]])
    there = torch.ones(1, SIZE, dtype=torch.bool)
    attention = logits.masked_fill(~looks[:, None], -torch.inf).softmax(-1)
    return Entries(attention, logits, values, values, there, looks, there, kinds, kinds, len(heads))


def random_entries(
    seed: int, *, batch: int = 2, groups: int = 2, share: int = 2, dtype: torch.dtype = torch.float64
) -> Entries:
    """Causal attention over 9 entries of which row b lacks the first 2b (padding on the left), all 9 rows kept."""
    made = torch.Generator().manual_seed(seed)
    size, width = 9, 4
    present = torch.arange(size) >= 2 * torch.arange(batch)[:, None]
    looks = (torch.ones(size, size).tril() > 0) & present[:, None]
    logits = 2 * torch.randn(batch, groups * share, size, size, generator=made, dtype=dtype)
    values, keys = (torch.randn(batch, groups, size, width, generator=made, dtype=dtype) for _ in range(2))
    # rows of padding look at nothing: their softmax is NaN, which nobody may notice
    attention = logits.masked_fill(~looks[:, None], -torch.inf).softmax(-1)
    modality = torch.randint(0, 2, (batch, size), generator=made)
    return Entries(attention, logits, values, keys, present, looks, present, modality, modality, groups)


def alone(entries: Entries, row: int) -> Entries:
    """Row `row` of a batch as if it had been run without padding and without neighbours."""
    there = entries.present[row]
    one = slice(row, row + 1)
    return Entries(
        attention=entries.attention[one][:, :, there][..., there],
        logits=entries.logits[one][:, :, there][..., there],
        values=entries.values[one][:, :, there],
        keys=entries.keys[one][:, :, there],
        row_valid=entries.row_valid[one][:, there],
        looks=entries.looks[one][:, there][..., there],
        present=entries.present[one][:, there],
        modality=entries.modality[one][:, there],
        row_modality=entries.row_modality[one][:, there],
        groups=entries.groups,
    )


def golden(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64)


def near(got: Tensor, want: Tensor) -> None:
    """Equal to the four decimals that the worked example is given with."""
    torch.testing.assert_close(got.double(), want, atol=6e-5, rtol=0)


def same_alone(entries: Entries, score: object) -> None:
    """`score(entries)` [B, Hkv, S] or [B, ...] gives each row what it gives it alone, and 0 to what is not there."""
    whole = score(entries)  # type: ignore[operator]
    assert bool(whole.isfinite().all())
    for row in range(whole.shape[0]):
        single = score(alone(entries, row))[0]  # type: ignore[operator]
        there = entries.present[row]
        part = whole[row]
        if part.dim() and part.shape[-1] == there.shape[0]:
            assert not bool(part[..., ~there].any()), "padding has a score"
            part = part[..., there]
        torch.testing.assert_close(part, single)
