"""A budget that reads its number off the scores."""

import math
from typing import Any

import pytest
import torch

from vlm_eff.core.config import from_dict, to_dict
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.rules import Above, Deviations, Mass, Outliers

SCORES = torch.tensor([[0.5, 0.1, 0.3, 0.1, 0.0], [0.2, 0.2, 0.2, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
VALID = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])
COUNTS = [
    (Keep(mass=0.45), [1, 2, 0]),
    (Keep(mass=0.8), [2, 3, 0]),
    (Keep(mass=1.0), [5, 3, 0]),
    (Keep(rule=Mass(0.8)), [2, 3, 0]),
    # softmax of scores over 0.1: shares of e**5, e, e**3, e, 1 in the first row
    (Keep(rule=Mass(0.84, temperature=0.1)), [1, 3, 0]),
    (Keep(rule=Mass(0.9, temperature=0.1)), [2, 3, 0]),
    # quartiles 0.1 and 0.3 and median 0.1 in the first row; the second is flat: nothing sticks out, one token stays
    (Keep(rule=Outliers()), [1, 1, 0]),
    (Keep(rule=Outliers(0.5)), [1, 1, 0]),
    (Keep(rule=Outliers(-0.5)), [2, 1, 0]),
    # mean 0.2, deviation 0.179
    (Keep(rule=Deviations()), [2, 1, 0]),
    (Keep(rule=Deviations(-1)), [4, 1, 0]),
    (Keep(rule=Above(0.1)), [2, 3, 0]),
    (Keep(rule=Above(99.0)), [1, 1, 0]),
    (Keep(ratio=0.5), [3, 2, 0]),
    (Keep(count=2), [2, 2, 0]),
]


@pytest.mark.parametrize(("keep", "want"), COUNTS, ids=lambda value: str(value) if isinstance(value, Keep) else "")
def test_each_row_reads_its_own_scores(keep: Keep, want: list[int]) -> None:
    assert keep.by_scores(SCORES, VALID, VALID.sum(1)).tolist() == want
    for row in range(3):
        alone = keep.by_scores(SCORES[row : row + 1], VALID[row : row + 1], VALID[row : row + 1].sum(1))
        assert alone.tolist() == want[row : row + 1]


@pytest.mark.parametrize("keep", [keep for keep, _ in COUNTS], ids=str)
def test_a_budget_survives_a_dict(keep: Keep) -> None:
    assert from_dict(to_dict(keep)) == keep


def test_what_is_known_before_the_scores() -> None:
    assert Keep(mass=0.9).adaptive and Keep(rule=Outliers()).adaptive
    assert not Keep(ratio=0.9).adaptive
    assert Keep(mass=1.0).everything and not Keep(mass=0.99).everything
    with pytest.raises(ConfigError, match=r"no scores.*Accepted: keep_ratio or keep_count"):
        Keep(mass=0.9).of_count(10, 10)


def test_scores_below_zero_have_no_mass() -> None:
    below = torch.tensor([[0.5, -0.1]])
    with pytest.raises(ConfigError, match="temperature"):
        Keep(mass=0.5).by_scores(below, torch.ones(1, 2, dtype=torch.bool), torch.tensor([2]))
    # what does not exist may hold anything
    assert Keep(mass=0.5).by_scores(below, torch.tensor([[True, False]]), torch.tensor([1])).tolist() == [1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Keep(mass=0),
        lambda: Keep(mass=1.1),
        lambda: Keep(mass=True),
        lambda: Keep(mass=0.5, ratio=0.5),
        lambda: Keep(rule=Outliers(), count=5),
        lambda: Mass(0.5, temperature=0),
        lambda: Mass(math.nan),
        lambda: Outliers(math.inf),
        lambda: Deviations("one"),  # type: ignore[arg-type]
        lambda: Above(math.nan),
    ],
)
def test_what_is_no_rule_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        wrong()
