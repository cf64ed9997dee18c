"""LLaVA-PruMerge: how many stand out, which, and what they take in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.tiny import tiny_inputs, visual_mask
from tests.tokens.tower_views import TowerView, look_at_clip
from vlm_eff.core.action import Merge
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.rules import Outliers
from vlm_eff.tokens import prumerge, prumerge_plus
from vlm_eff.tokens.reduce.nearest import NeighbourMerge
from vlm_eff.tokens.scores_tower import TowerScore
from vlm_eff.tokens.select_outstanding import OutstandingTokens

FACTOR, NEAR = 0.5, 4


def one_head(query: Tensor, key: Tensor) -> np.ndarray:
    """Class token's row over the patches, all heads as one of their joint width."""
    logits = (query[0] @ key.T) / key.shape[1] ** 0.5
    return torch.softmax(logits, 0)[1:].double().numpy()


def by_hand(attention: np.ndarray, keys: Tensor, features: Tensor) -> dict[int, Tensor]:
    """Features of every token of one image that is left; plain loops over the definition."""
    low, high = np.percentile(attention, [25, 75])
    count = max(int((attention > high + FACTOR * (high - low)).sum()), 1)
    ranked = sorted(range(len(attention)), key=lambda patch: (-attention[patch], patch))
    kept, gone = ranked[:count], ranked[count:]
    made = {}
    for patch in kept:
        others = [other for other in range(len(attention)) if other != patch]
        like = {other: float(torch.cosine_similarity(keys[patch], keys[other], dim=0)) for other in others}
        near = sorted(others, key=lambda other: (-like[other], other))[:NEAR]
        made[patch] = features[patch] + sum(float(attention[other]) * features[other] for other in near)
    made[max(gone)] = sum(float(attention[other]) * features[other] for other in gone)
    return made


def test_sets_and_contents_follow_the_definition() -> None:
    inputs, model = tiny_inputs("llava", (1, 2)), kit.model_of("llava")
    seen = look_at_clip(kit.model_of("llava", "eager"), inputs)
    written = kit.written(model, inputs, prumerge(factor=FACTOR, neighbours=NEAR))[0]
    image, counts = 0, set()
    for row, mask in enumerate(visual_mask(inputs)):
        places, want = mask.nonzero()[:, 0].tolist(), {}
        for start in range(0, len(places), 25):
            query, key = seen.queries[-1][image], seen.keys[-1][image]
            made = by_hand(one_head(query, key), key[1:], seen.features[image])
            counts.add(len(made))
            want |= {places[start + patch]: features for patch, features in made.items()}
            image += 1
        assert sorted(written[row]) == sorted(want)
        for place, features in want.items():
            with torch.no_grad():
                token = model.model.multi_modal_projector(features)
            torch.testing.assert_close(written[row][place], token, atol=1e-4, rtol=1e-4)
    assert len(counts) > 1, "images of one count would not show that each has its own quartiles"


def chosen(view: TowerView, keep: Keep, spread: str = "none") -> Tensor:
    return OutstandingTokens(spread)(view.attention, view, keep)  # type: ignore[arg-type]


def test_constant_attention_keeps_one_token() -> None:
    made = chosen(TowerView([[(0, 0, 4, 4)]], torch.full((1, 16), 0.1)), Keep(rule=Outliers(1.5)))
    assert made[0].nonzero()[:, 0].tolist() == [0]


def test_outliers_of_a_known_vector() -> None:
    """Quartiles 2.75 and 8.25 of 0..9, 20, 30 with the upper fence at 16.5."""
    values = torch.tensor([[0, 30, 1, 2, 3, 4, 20, 5, 6, 7, 8, 9.0]])
    assert np.percentile(values, [25, 75]).tolist() == [2.75, 8.25]
    made = chosen(TowerView([[(0, 0, 3, 4)]], values), Keep(rule=Outliers(1.5)))
    assert made[0].nonzero()[:, 0].tolist() == [1, 6]


def test_every_image_has_quartiles_of_its_own() -> None:
    """The released code's count over the flattened batch changes with the neighbours."""
    quiet, loud = torch.linspace(0, 1, 16), torch.linspace(0, 100, 16)
    quiet[3] = 9.0
    both = TowerView([[(0, 0, 4, 4)], [(0, 0, 4, 4)]], torch.stack([quiet, loud]))
    alone = TowerView([[(0, 0, 4, 4)]], quiet[None])
    assert chosen(both, Keep(rule=Outliers(1.5)))[0].tolist() == chosen(alone, Keep(rule=Outliers(1.5)))[0].tolist()
    assert chosen(alone, Keep(rule=Outliers(1.5))).sum() == 1


def test_the_spread_of_the_released_code_and_ours() -> None:
    """576 tokens of which 32 stand out: a stride of 18 // 3 = 6, or rows and columns 2 apart."""
    attention = torch.rand(1, 576, generator=torch.Generator().manual_seed(0)) / 10
    attention[0, 100:132] += 1
    view = TowerView([[(0, 0, 24, 24)]], attention)
    line = chosen(view, Keep(rule=Outliers(1.5)), "line")[0].nonzero()[:, 0].tolist()
    assert line == sorted({*range(100, 132), *range(0, 575, 6)})
    grid = chosen(view, Keep(rule=Outliers(1.5)), "grid")[0].nonzero()[:, 0].tolist()
    assert grid == sorted({*range(100, 132), *(24 * y + x for y in range(0, 24, 2) for x in range(0, 24, 2))})


def test_more_than_a_third_outstanding_is_no_division_by_zero() -> None:
    attention = torch.cat([torch.zeros(7), torch.ones(3)])[None]
    for spread in ("line", "grid"):
        made = chosen(TowerView([[(0, 0, 2, 5)]], attention), Keep(rule=Outliers(0.0)), spread)
        assert made.sum() >= 9


@pytest.mark.parametrize("spread", ["none", "grid", "line"])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 23, 24])
def test_a_number_is_met_with_the_sum(count: int, spread: str) -> None:
    view = TowerView([[(0, 0, 4, 6), (1, 1, 3, 3)], [(0, 0, 4, 6)], []], torch.rand(3, 33))
    keep, score = Keep(count=count), TowerScore()
    action = NeighbourMerge(score, 3)(view, keep, chosen(view, keep, spread))  # type: ignore[arg-type]
    assert isinstance(action, Merge)
    images = view.spans.image.gather(1, action.index)
    got = [int((action.valid[row] & (images[row] == image)).sum()) for row, image in ((0, 0), (0, 1), (1, 0))]
    assert got == [count, min(count, 9), count]
    assert action.valid[2].sum() == 0
    for row in range(2):
        kept = action.index[row, action.valid[row]].tolist()
        assert kept == sorted(set(kept))


def test_the_sum_holds_all_that_is_dropped_and_nothing_else() -> None:
    view = TowerView([[(0, 0, 3, 3)]], torch.tensor([[9, 1, 2, 8, 3, 4, 5, 6, 7.0]]))
    keep = Keep(count=3)
    action = NeighbourMerge(TowerScore(), 0)(view, keep, chosen(view, keep))  # type: ignore[arg-type]
    assert action.index.tolist() == [[0, 3, 8]]
    gone = [1, 2, 4, 5, 6, 7, 8]
    want = (view.attention[0, gone, None] * view.features[0, gone]).sum(0)
    torch.testing.assert_close(action.hidden[0, 2], want)
    assert torch.equal(action.hidden[0, :2], view.features[0, [0, 3]])
    assert action.weight.tolist() == [[1, 1, 7]]


def test_neighbours_of_another_image_are_not_taken_in() -> None:
    features = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    attention = torch.linspace(1, 0.1, 9).repeat(1, 2)
    view, keep = TowerView([[(0, 0, 3, 3), (1, 1, 3, 3)]], attention, features=features), Keep(count=4)
    made = NeighbourMerge(TowerScore(), 2)(view, keep, chosen(view, keep))  # type: ignore[arg-type]
    alone = TowerView([[(0, 0, 3, 3)]], attention[:, :9], features=features[:, :9])
    want = NeighbourMerge(TowerScore(), 2)(alone, keep, chosen(alone, keep))  # type: ignore[arg-type]
    torch.testing.assert_close(made.hidden[0, :4], want.hidden[0])
    torch.testing.assert_close(made.hidden[0, 4:], want.hidden[0])


def test_plus_keeps_more() -> None:
    inputs, model = tiny_inputs("llava", (1,)), kit.model_of("llava")
    few, more = (
        set(kit.attached(model, inputs, plugin).handle.survivors(0)[0].tolist())
        for plugin in (prumerge(), prumerge_plus())
    )
    assert len(few) < len(more) < inputs["input_ids"].shape[1]
