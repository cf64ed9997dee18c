"""VisionZip: counts, dominant tokens, where the others go, and what is written there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.definitions import best
from tests.tiny import tiny_inputs, visual_mask
from tests.tokens.tower_views import TowerView, look_at_clip
from vlm_eff.core.action import Merge
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens import fastervlm, visionzip
from vlm_eff.tokens.reduce.context import ContextMerge, Dominant, spread_targets

TOTAL, CONTEXTUAL = 10, 3


def by_hand(attention: Tensor, keys: Tensor, features: Tensor, faithful: bool) -> tuple[list[int], dict[int, Tensor]]:
    """Dominant patches of one image, and the features of each contextual one; plain loops over the definition."""
    dominant = best(attention.tolist(), TOTAL - CONTEXTUAL)
    rest = [patch for patch in range(len(attention)) if patch not in dominant]
    targets = rest[:: len(rest) // CONTEXTUAL][:CONTEXTUAL]
    joined: dict[int, list[Tensor]] = {target: [] for target in targets}
    for patch in rest:
        if patch not in targets:
            like = [float(torch.cosine_similarity(keys[patch], keys[target], dim=0)) for target in targets]
            joined[targets[like.index(max(like))]].append(features[patch])
    made = {}
    for target, others in joined.items():
        if faithful:
            made[target] = features[target] + (torch.stack(others).mean(0) if others else 0)
        else:
            made[target] = torch.stack([features[target], *others]).mean(0)
    return dominant, made


@pytest.mark.parametrize("faithful", [False, True])
def test_sets_and_contents_follow_the_definition(faithful: bool) -> None:
    inputs, model = tiny_inputs("llava", (1, 2)), kit.model_of("llava")
    seen = look_at_clip(kit.model_of("llava", "eager"), inputs)
    plugin = visionzip(keep_count=TOTAL, contextual=CONTEXTUAL / TOTAL, faithful=faithful)
    written = kit.written(model, inputs, plugin)[0]
    bare = kit.written(model, inputs, fastervlm(keep_count=25))[0]
    image = 0
    for row, mask in enumerate(visual_mask(inputs)):
        places, checked = mask.nonzero()[:, 0].tolist(), 0
        for start in range(0, len(places), 25):
            keys = seen.keys[-2][image, 1:].unflatten(-1, (2, -1)).mean(1)
            dominant, made = by_hand(seen.attention[-2][image].sum(0), keys, seen.features[image], faithful)
            for patch in dominant:
                assert torch.equal(written[row][places[start + patch]], bare[row][places[start + patch]])
            for patch, features in made.items():
                with torch.no_grad():
                    token = model.model.multi_modal_projector(features)
                torch.testing.assert_close(written[row][places[start + patch]], token, atol=1e-4, rtol=1e-4)
            checked += len(dominant) + len(made)
            image += 1
        assert len(written[row]) == checked == TOTAL * len(places) // 25


def test_merging_before_the_projector_is_not_merging_after_it() -> None:
    """The projector bends: a test that would pass with the cheaper order would prove nothing."""
    inputs, model = tiny_inputs("llava", (1,)), kit.model_of("llava")
    seen, made = look_at_clip(kit.model_of("llava", "eager"), inputs), model.model.multi_modal_projector
    with torch.no_grad():
        first, second = made(seen.features[0].mean(0)), made(seen.features[0]).mean(0)
    assert (first - second).abs().max() > 0.1


def test_without_contextual_tokens_it_is_fastervlm() -> None:
    inputs, model = tiny_inputs("llava", (1, 2)), kit.model_of("llava")
    one, other = (
        kit.attached(model, inputs, plugin)
        for plugin in (visionzip(keep_count=7, contextual=0.0), fastervlm(keep_count=7))
    )
    assert [row.tolist() for row in one.handle.survivors(0)] == [row.tolist() for row in other.handle.survivors(0)]
    assert torch.equal(one.logits, other.logits)


def merged(view: TowerView, count: int, share: float, faithful: bool = False) -> Merge:
    keep = Keep(count=count)
    chosen = Dominant(share)(view.attention, view, keep)  # type: ignore[arg-type]
    action = ContextMerge(share, faithful=faithful)(view, keep, chosen)  # type: ignore[arg-type]
    assert isinstance(action, Merge)
    return action


@pytest.mark.parametrize(("faithful", "factor"), [(True, 2.0), (False, 1.0)])
def test_equal_patches_merge_to_themselves_or_to_twice_that(faithful: bool, factor: float) -> None:
    """The released code adds where the paper averages."""
    patch = torch.randn(8, generator=torch.Generator().manual_seed(0))
    view = TowerView([[(0, 0, 4, 4)]], torch.linspace(1, 0, 16)[None], features=patch.expand(1, 16, 8).clone())
    made = merged(view, 6, 1 / 3, faithful)
    assert made.index.tolist() == [[0, 1, 2, 3, 4, 10]]
    torch.testing.assert_close(made.hidden[0, :4], patch.expand(4, 8))
    # equal keys: all of them join the first of the two targets
    torch.testing.assert_close(made.hidden[0, 4], factor * patch)
    torch.testing.assert_close(made.hidden[0, 5], patch)
    assert made.weight.tolist() == [[1, 1, 1, 1, 11, 1]]


def test_means_conserve_weights_and_sums() -> None:
    rows = [[(0, 0, 5, 5), (1, 1, 3, 4)], [(0, 0, 4, 4)], []]
    attention = torch.rand(3, 37, generator=torch.Generator().manual_seed(3))
    view = TowerView(rows, attention)
    made = merged(view, 8, 0.4)
    assert made.valid.sum(1).tolist() == [16, 8, 0]
    weight = made.weight * made.valid
    assert weight.sum(1).tolist() == [37, 16, 0]
    want = (view.features * view.spans.valid[:, :, None]).sum(1)
    torch.testing.assert_close((made.hidden * weight[:, :, None]).sum(1), want)


def test_tokens_never_join_another_image() -> None:
    """Both images hold the same patches, so every token has a twin in the other one."""
    features = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    view = TowerView([[(0, 0, 3, 3), (1, 1, 3, 3)]], torch.linspace(1, 0, 9).repeat(1, 2), features=features)
    made = merged(view, 4, 0.5)
    torch.testing.assert_close(made.hidden[0, :4], made.hidden[0, 4:])
    assert made.weight[0].view(2, 4).sum(1).tolist() == [9, 9]


def test_targets_stand_at_an_even_stride() -> None:
    candidates = torch.tensor([[True] * 7 + [False] + [True] * 3, [True] * 4 + [False] * 7])
    image = torch.tensor([[0] * 7 + [1] * 4, [0] * 11])
    made = spread_targets(candidates, image, torch.tensor([[3, 2], [9, 1]]))
    assert [row.nonzero()[:, 0].tolist() for row in made] == [[0, 2, 4, 8, 9], [0, 1, 2, 3]]


@pytest.mark.parametrize(("count", "dominant"), [(192, 162), (128, 108), (64, 54), (1, 1)])
def test_budgets_of_the_paper(count: int, dominant: int) -> None:
    view = TowerView([[(0, 0, 24, 24)]], torch.rand(1, 576, generator=torch.Generator().manual_seed(0)))
    chosen = Dominant(10 / 64)(view.attention, view, Keep(count=count))  # type: ignore[arg-type]
    assert int(chosen.sum()) == dominant
