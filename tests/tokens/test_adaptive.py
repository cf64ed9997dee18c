"""Numbers read off the scores, in a batch, over several images, over several layers, and what the report says."""

import itertools
import math

import pytest
import torch

from tests.contracts import checks, definitions, kit
from tests.tiny import tiny_inputs
from tests.tokens.hand_made import hand_view
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext
from vlm_eff.importance.keep import Keep
from vlm_eff.importance.rules import Above, Deviations, Mass, Outliers
from vlm_eff.tokens import fastv, for_budget
from vlm_eff.tokens.adaptive import SharedTopK, logistic_stages
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores import GridSpread, QueryAttention
from vlm_eff.tokens.select import TopK, TopKAndGrid

VIEW = hand_view([(4, 6), (5, 0), (0, 0)])
SCORES = torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0, 5, 5], [1.0, 1, 1, 1, 6, 9, 9, 9, 9, 9], [9.0] * 10])


def own(keep: Keep, **stage: object) -> TokenReducer:
    return TokenReducer("mine", (Stage(keep, layer=1, score=QueryAttention(), **stage),))  # type: ignore[arg-type]


COMPOSED = {
    "mass": own(Keep(mass=0.6)),
    "mass-image": own(Keep(mass=0.6), select=TopK(per="image")),
    "outliers": own(Keep(rule=Outliers(0.2))),
    "deviations-grid": own(Keep(rule=Deviations(0.5)), select=TopKAndGrid(3)),
    "softmax": own(Keep(rule=Mass(0.7, temperature=0.01))),
    "above": own(Keep(rule=Above(0.012))),
    "shared": own(Keep(ratio=0.3), select=SharedTopK()),
    "shared-mass": own(Keep(mass=0.6), select=SharedTopK(weight="mean", over="group")),
    "curve": TokenReducer("mine", logistic_stages(QueryAttention(when="before"), 0.5, depths=(0.2, 0.4, 0.7))),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_contracts_hold(family: str, name: str) -> None:
    made = COMPOSED[name]
    checks.drop_equals_mask(family, "sdpa", made, (1, 2, 0), "right")
    checks.batch_equals_rows(family, made)
    checks.eager_equals_sdpa(family, made)
    checks.only_image_tokens_go(family, made)
    checks.report_is_measured(family, made)
    assert from_dict(made.to_dict()) == made


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9])
def test_mass_is_the_smallest_set_by_eager_attention(mass: float) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2, 0))
    run = kit.attached(model, inputs, fastv(layer=2, keep_mass=mass))
    candidates = checks.image_tokens("llava", inputs)
    kept = kit.survivors(run.handle, inputs)[2] & candidates
    row = definitions.last_row(model, inputs, 1, {})
    for index in range(2):
        best = sorted(row[index][candidates[index]].double().tolist(), reverse=True)
        count = int(kept[index].sum())
        assert sum(best[:count]) >= mass * sum(best) > sum(best[: count - 1])
        assert sorted(row[index][kept[index]].double().tolist(), reverse=True) == best[:count]
    counts = kept.sum(1).tolist()
    assert counts[2] == 0
    if mass == 0.9:
        assert counts[0] != counts[1], "one number for all rows"


def test_more_mass_keeps_more() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    sets = [kit.attached(model, inputs, fastv(keep_mass=m)).handle.survivors(2) for m in (0.2, 0.5, 0.8, 1.0)]
    for less, more in itertools.pairwise(sets):
        assert all(set(a.tolist()) < set(b.tolist()) for a, b in zip(less, more, strict=True))
    assert all(len(row) == inputs["input_ids"].shape[1] for row in sets[-1])


def test_the_report_asks_what_the_scores_said() -> None:
    made = fastv(keep_mass=0.5)
    asked = made.bind(BindContext("llava", 6)).asked(25, 6)
    assert asked[:2] == [25, 25] and all(map(math.isnan, asked[2:]))
    last = kit.attached(kit.model_of("llava"), tiny_inputs("llava", (1, 2)), made).handle.stats().last
    assert last is not None
    assert last.asked_per_layer == last.visual_per_layer
    assert last.n_eq_asked == pytest.approx(last.n_eq)
    assert last.n_eq < last.visual_tokens
    # beside a method whose count is known, the smaller one is what was asked of each row
    assert fastv(keep_mass=1.0).bind(BindContext("llava", 6)).asked(25, 6) == [25] * 6


def test_a_budget_cannot_be_solved_where_the_scores_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_eff.core.registry import METHODS, Method

    def by_mass(keep_ratio: float) -> TokenReducer:
        return fastv(keep_mass=min(keep_ratio, 0.9))

    monkeypatch.setitem(METHODS._values, "by_mass", Method("by_mass", by_mass, "tokens", "", ""))
    with pytest.raises(ConfigError, match="follows from scores"):
        for_budget("by_mass", n_eq=100, visual_tokens=576, num_layers=32)


def chosen(select: SharedTopK, keep: Keep) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in select(SCORES, VIEW, keep)]


def test_a_budget_is_shared_out_by_mass() -> None:
    # the sample's scores are 10 and 10: four of eight tokens go to each image
    assert chosen(SharedTopK(floor=0), Keep(count=8)) == [[0, 1, 2, 3, 4, 5, 8, 9], [0, 1, 2, 3, 4], []]
    # means 2.5 and 1.67: 3.6 and 2.4 tokens; one image takes all of its sample
    assert chosen(SharedTopK(weight="mean", floor=0), Keep(count=6)) == [[0, 1, 2, 3, 8, 9], [0, 1, 2, 3, 4], []]
    # 4 and 6 tokens of 10
    assert chosen(SharedTopK(weight="tokens"), Keep(count=5)) == [[2, 3, 4, 8, 9], [0, 1, 2, 3, 4], []]
    assert chosen(SharedTopK(floor=0), Keep(count=1)) == [[3], [4], []]


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("floor", [0, 1, 3])
def test_the_budget_is_met_exactly_and_every_image_gets_its_floor(count: int, floor: int) -> None:
    made = SharedTopK(floor=floor)(SCORES, VIEW, Keep(count=count))
    assert made.sum(1).tolist() == [count, min(count, 5), 0]
    if count >= 2 * floor:
        assert int(made[0, :4].sum()) >= floor and int(made[0, 4:].sum()) >= floor


def test_an_image_that_nobody_looks_at_keeps_its_floor() -> None:
    poor = SCORES.clone()
    poor[0, :4] /= 1e6
    assert SharedTopK(floor=0)(poor, VIEW, Keep(count=6))[0, :4].sum() == 0
    assert SharedTopK(floor=2)(poor, VIEW, Keep(count=6))[0].nonzero()[:, 0].tolist() == [2, 3, 4, 5, 8, 9]


def test_shares_need_scores_of_at_least_zero() -> None:
    with pytest.raises(ConfigError, match='weight="tokens"'):
        SharedTopK()(SCORES - 2, VIEW, Keep(count=3))
    made = SharedTopK(weight="tokens")(SCORES - 2, VIEW, Keep(count=5))
    assert torch.equal(made, SharedTopK(weight="tokens")(SCORES, VIEW, Keep(count=5)))


def test_a_curve_has_the_mean_that_was_asked() -> None:
    stages = logistic_stages(GridSpread(), 0.4, depths=(0.25, 0.5, 0.75))
    bound = TokenReducer("mine", stages).bind(BindContext("llava", 32))
    asked = bound.asked(576, 32)
    assert asked[:8] == [576] * 8 and asked == sorted(asked, reverse=True)
    assert sum(asked[8:]) / 24 == pytest.approx(0.4 * 576, abs=1)
    ratios = [stage.keep.ratio for stage in stages]
    # both sides of the logistic's middle: the fall is steepest there
    assert ratios[0] / ratios[1] == pytest.approx((1 + math.exp(12.8 * 0.034)) / (1 + math.exp(12.8 * -0.216)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "wrong", [{"keep_ratio": 0}, {"depths": ()}, {"depths": (0.5, 0.2)}, {"depths": (0.0, 0.5)}, {"slope": -1}], ids=str
)
def test_what_is_no_curve_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        logistic_stages(GridSpread(), **wrong)  # type: ignore[arg-type]


def test_a_rule_without_a_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a score"):
        Stage(Keep(mass=0.5), layer=1)
    for wrong in ({"weight": "size"}, {"floor": -1}, {"over": "frame"}):
        with pytest.raises(ConfigError, match="Accepted: "):
            SharedTopK(**wrong)  # type: ignore[arg-type]
