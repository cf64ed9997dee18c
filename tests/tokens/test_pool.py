"""Average pooling on a hand-made view: nothing is lost, nothing is counted twice."""

import pytest
import torch
from torch import Tensor

from vlm_eff.core.action import Merge
from vlm_eff.importance.keep import Keep
from vlm_eff.models.view import View
from vlm_eff.models.visual import VisualSpans
from vlm_eff.tokens.reduce.pool import AveragePool


def view(*grids: tuple[int, int]) -> View:
    """Row i has one tile of `grids[i]` cells behind two words; hidden states are small whole numbers."""
    width = max(height * wide for height, wide in grids)
    spans = {name: torch.zeros(len(grids), width, dtype=torch.long) for name in ("slot", "image", "group", "y", "x")}
    valid = torch.zeros(len(grids), width, dtype=torch.bool)
    for row, (height, wide) in enumerate(grids):
        count = height * wide
        order = torch.arange(count)
        spans["slot"][row, :count], valid[row, :count] = order + 2, True
        spans["y"][row, :count], spans["x"][row, :count] = order // max(wide, 1), order % max(wide, 1)
    hidden = torch.randint(0, 8, (len(grids), width + 3, 4), generator=torch.Generator().manual_seed(0)).float()
    made = VisualSpans(valid=valid, **spans)
    unread = dict.fromkeys(View.__dataclass_fields__)
    seen = {"layer": 0, "spans": made, "hidden": hidden, "physical": made.slot, "original": made.count}
    return View(**unread | seen)  # type: ignore[arg-type]


def pooled(*grids: tuple[int, int], ratio: float = 0.25) -> tuple[View, Merge]:
    made = view(*grids)
    action = AveragePool()(made, Keep(ratio=ratio), None)
    assert isinstance(action, Merge)
    return made, action


def total(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid[..., None]).sum(1)


@pytest.mark.parametrize("ratio", [0.04, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("grids", [((4, 4),), ((5, 7), (3, 3)), ((6, 2), (0, 0), (1, 9))], ids=str)
def test_weights_and_weighted_sums_are_conserved(grids: tuple[tuple[int, int], ...], ratio: float) -> None:
    seen, made = pooled(*grids, ratio=ratio)
    weight = made.weight * made.valid
    assert weight.sum(1).tolist() == [height * wide for height, wide in grids]
    want = total(seen.visual_hidden(), seen.spans.valid)
    torch.testing.assert_close(total(made.hidden * made.weight[..., None], made.valid), want)


def test_a_quarter_of_a_square_is_means_of_two_by_two() -> None:
    seen, made = pooled((4, 4))
    cells = seen.visual_hidden()[0].view(4, 4, 4)
    want = cells.unfold(0, 2, 2).unfold(1, 2, 2).mean((-1, -2)).reshape(4, 4)
    torch.testing.assert_close(made.hidden[0], want)
    assert made.weight[0].tolist() == [4, 4, 4, 4]
    # no cell is in the middle of four: the first one stands for them
    assert made.index[0].tolist() == [0, 2, 8, 10]


def test_means_of_three_by_three_stand_in_the_middle() -> None:
    _, made = pooled((9, 9), ratio=1 / 9)
    assert made.index[0].tolist() == [row * 9 + column for row in (1, 4, 7) for column in (1, 4, 7)]


def test_rows_without_tokens_are_left_out() -> None:
    _, made = pooled((4, 4), (0, 0))
    assert made.valid.sum(1).tolist() == [4, 0]


def test_keeping_everything_changes_nothing() -> None:
    seen, made = pooled((4, 4), ratio=1.0)
    assert torch.equal(made.hidden, seen.visual_hidden())
    assert made.index[0].tolist() == list(range(16))
