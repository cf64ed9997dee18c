"""Similarities of pairs, whole, in blocks and a line at a time, against loops in float64."""

import pytest
import torch
from torch import Tensor

from vlm_eff.importance import similarity
from vlm_eff.importance.similarity import blocks, cosine, lines, normalised, pairwise


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 9, 5, generator=generator)
    x[0, 4] = x[0, 2] * 3
    x[1, 1] = 0
    valid = torch.rand(3, 9, generator=generator) < 0.8
    valid[2] = False
    return x, valid


def by_hand(x: Tensor, valid: Tensor) -> Tensor:
    made = torch.zeros(x.shape[0], x.shape[1], x.shape[1], dtype=torch.float64)
    for row, line, column in torch.cartesian_prod(*map(torch.arange, made.shape)).tolist():
        a, b = x[row, line].double(), x[row, column].double()
        if valid[row, line] and valid[row, column] and a.norm() and b.norm():
            made[row, line, column] = (a @ b) / (a.norm() * b.norm())
    return made.float()


def test_pairs_are_the_cosines() -> None:
    x, valid = batch()
    torch.testing.assert_close(pairwise(x, valid), by_hand(x, valid))


@pytest.mark.parametrize("stripe", [1, 4, 9])
def test_stripes_make_the_same_table(stripe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_STRIPE", stripe)
    x, valid = batch()
    made = pairwise(x, valid)
    torch.testing.assert_close(made, by_hand(x, valid))
    assert torch.equal(made, made.transpose(1, 2))


def test_what_does_not_exist_has_no_influence() -> None:
    x, valid = batch()
    other = torch.where(valid[:, :, None], x, torch.full_like(x, 1e9))
    assert torch.equal(pairwise(x, valid), pairwise(other, valid))
    for column in range(9):
        at = torch.full((3,), column)
        assert torch.equal(lines(x, valid)(at) * valid, lines(other, valid)(at) * valid)


def test_blocks_and_lines_say_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x, valid = batch()
    want = pairwise(x, valid)
    monkeypatch.setattr(similarity, "_BLOCK", 3 * 9 * 2)
    parts = list(blocks(x, valid))
    assert [start for start, _ in parts] == [0, 2, 4, 6, 8]
    torch.testing.assert_close(torch.cat([part for _, part in parts], 1).masked_fill(~valid[:, None], 0), want)
    for limit in (4096, 0):
        monkeypatch.setattr(similarity, "TABLE", limit)
        line = lines(x, valid)
        for column in range(9):
            at = torch.tensor([column, (column + 3) % 9, 0])
            torch.testing.assert_close(line(at) * valid, want[torch.arange(3), at])


def test_against_others() -> None:
    x, valid = batch()
    other = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    made = pairwise(x, valid, other)
    assert made.shape == (3, 9, 4)
    torch.testing.assert_close(made[0, 3, 2], cosine(x[0, 3], other[0, 2]) * valid[0, 3])


def test_low_precision_and_tiny_vectors() -> None:
    x = torch.tensor([[1.0, 1.0], [1e-20, 1e-20], [0.0, 0.0]], dtype=torch.bfloat16)
    unit = normalised(x)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    assert cosine(x[0], x[2]) == 0
