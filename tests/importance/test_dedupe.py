"""Near copies are taken out in rounds: against a plain loop over lists, and cases worked out by hand."""

import pytest
import torch
from torch import Tensor

from vlm_eff.importance.dedupe import distinct


def by_loops(features: Tensor, keep: int, step: int) -> list[int]:
    left = list(range(len(features)))
    while len(left) > keep:
        even, odd = left[::2], left[1::2]
        like = [max(float(torch.cosine_similarity(features[e], features[o], dim=0)) for o in odd) for e in even]
        worst = sorted(range(len(even)), key=lambda place: (-like[place], place))[: min(step, len(left) - keep)]
        gone = {even[place] for place in worst}
        left = [item for item in left if item not in gone]
    return left


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize(("size", "keep"), [(20, 5), (21, 20), (33, 1), (2, 1)])
def test_equals_plain_loops(size: int, keep: int, step: int) -> None:
    features = torch.randn(3, size, 6, generator=torch.Generator().manual_seed(size + keep))
    got = distinct(features, keep, step)
    assert got.tolist() == [by_loops(one, keep, step) for one in features]


def test_exact_copies_go_first() -> None:
    own = torch.eye(6)
    features = torch.stack([own[0], own[0], own[1], own[2], own[2], own[3], own[4], own[5]])[None]
    # 0 and 1 are copies in neighbouring places, 3 and 4 too: an even one of each pair goes before anything else
    assert distinct(features, 6, 2)[0].tolist() == [1, 2, 3, 5, 6, 7]


def test_nothing_goes_when_everything_fits_and_equal_tokens_are_no_problem() -> None:
    features = torch.ones(1, 5, 3)
    assert distinct(features, 5, 8)[0].tolist() == [0, 1, 2, 3, 4]
    assert distinct(features, 9, 8)[0].tolist() == [0, 1, 2, 3, 4]
    assert distinct(features, 2, 8)[0].tolist() == [1, 3]
