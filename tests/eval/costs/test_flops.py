"""What the cost model says is what torch counts, for every method: prefill, decode steps and the vision tower."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import vlm_eff
from tests.contracts import cases, kv_cases, tower_cases
from tests.recipes.cases import RECIPES
from tests.tiny import FAMILIES, VIDEO_FAMILIES, TinyInputs, tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import Stats
from vlm_eff.kernels.packed_decode import fast
from vlm_eff.models import cost, kv, step_cost, tap
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.aside import Aside
from vlm_eff.models.cost import PartFlops, prefill_flops
from vlm_eff.models.flops import CountFlops
from vlm_eff.tokens import lazyllm, tome, uniform_grid

HARD: dict[str, Plugin] = {
    **cases.HARD,
    **{name: made[1] for name, made in (cases.BYPASS_CASES | cases.SPARSE_CASES).items()},
    **tower_cases.TOWER_HARD,
    **kv_cases.HARD,
    **{name: made[1] for name, made in (kv_cases.LOGIT_CASES | RECIPES).items()},
}
# rooms whose methods act on a decoder or its tower; those of diffusion have a count of their own
ROOMS = ("tokens", "kvcache", "recipes")
EXEMPT: dict[str, str] = {
    # nothing yet: a method that cannot be counted stands here with the reason
}
# what differs from family to family: windows and packed images in the tower, M-RoPE, DeepStack, sliding layers
OTHER_FAMILIES = {
    "qwen2_5_vl": ("pyramiddrop", "tome", "zipvl_kv"),
    "qwen3_vl": ("fastv", "zero_tprune"),
    "gemma3": ("feather", "kivi", "modality_logits"),
    "mistral3": ("visionzip", "evit"),
}
WITHIN = 0.01
STEPS = 2


@dataclass(frozen=True)
class Counted:
    """What was counted of a prompt and of each decode step, and what the handle said then."""

    parts: list[PartFlops]
    said: list[float]
    stats: Stats

    def ratios(self) -> dict[str, float]:
        """Counted / said, by what was counted."""
        prompt, towers = self.stats.prefills[-1], self.stats.towers
        made = {"prefill": self.parts[0].decoder / prompt.flops}
        if towers:
            made["tower"] = self.parts[0].blocks / towers[-1].flops
        steps = zip(self.parts[1:], self.said[1:], strict=True)
        return made | {f"step {at}": part.decoder / said for at, (part, said) in enumerate(steps)}

    def assert_agrees(self) -> None:
        assert all(abs(ratio - 1) <= WITHIN for ratio in self.ratios().values()), self.ratios()


class _Marks(LogitsProcessor):
    """Looks at the counter whenever a token is about to be chosen."""

    def __init__(self, counter: CountFlops, handle: Handle) -> None:
        self.counter, self.handle = counter, handle
        self.parts: list[PartFlops] = []
        self.said: list[float] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.parts.append(self.counter.take())
        self.said.append(self.handle.stats().step_flops)
        return scores


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_vlm(family)


def count(family: str, plugin: Plugin, inputs: TinyInputs | None = None) -> Counted:
    """Generate with a plugin and count."""
    model = model_of(family)
    if inputs is None:
        inputs = tiny_inputs(family, (1,))
    with torch.no_grad(), attach(model, plugin) as handle, CountFlops(adapter_for(model)) as counter:
        marks = _Marks(counter, handle)
        model.generate(
            **inputs, max_new_tokens=STEPS + 1, do_sample=False, logits_processor=LogitsProcessorList([marks])
        )
    return Counted(marks.parts, marks.said, handle.stats())


def test_every_method_is_counted_or_exempt() -> None:
    methods = {name for name, method in vlm_eff.methods().items() if method.room in ROOMS}
    assert methods == set(HARD) | set(EXEMPT) and not set(HARD) & set(EXEMPT)


@pytest.mark.parametrize("name", sorted(HARD))
def test_cost_model_agrees_with_what_is_counted(name: str) -> None:
    count("llava", HARD[name]).assert_agrees()


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, names in OTHER_FAMILIES.items() for n in names])
def test_other_families_agree(family: str, name: str) -> None:
    count(family, HARD[name]).assert_agrees()


@pytest.mark.parametrize("plugin", [lazyllm(keep_ratio=0.6, layers=(1, 2, 4)), HARD["vertical_slash"]], ids=str)
def test_what_comes_back_and_what_is_padding_is_counted(plugin: Plugin) -> None:
    # tokens that come back run along in decode steps; rows that attend apart spare their padding
    count("llava", plugin, tiny_inputs("llava", (1, 2))).assert_agrees()


@pytest.mark.parametrize(
    ("family", "video"), [(f, False) for f in FAMILIES] + [(f, True) for f in VIDEO_FAMILIES if f != "qwen2_vl"]
)
def test_every_part_of_a_bare_model_agrees(family: str, video: bool) -> None:
    model, inputs = model_of(family), tiny_inputs(family, (1,), video=video)
    adapter = adapter_for(model)
    # two plugins that do nothing bring the numbers of tokens
    with torch.no_grad(), attach(model, tome(r=0), uniform_grid(keep_ratio=1.0)) as handle:
        model(**inputs, logits_to_keep=1)
    stats = handle.stats()
    said = prefill_flops(adapter, stats.prefills[-1], stats.towers, bare=True)
    with torch.no_grad(), CountFlops(adapter) as counter:
        model(**inputs, logits_to_keep=1)
    counted = counter.take()
    assert asdict(counted) == pytest.approx(asdict(said), rel=WITHIN)
    assert counted.overhead == 0 and counted.blocks > 0 and counted.decoder > 0


def test_work_of_plugins_is_apart() -> None:
    scores = count("llava", HARD["snapkv"])
    # a window of query rows is attended with once more when the cache is compressed, and never again
    assert [part.overhead > 0 for part in scores.parts] == [False, True, False]
    assert scores.parts[0].total == scores.parts[0].model
    gradients = count("llava", HARD["sensitivity"]).parts[0]
    # a forward and two backwards more
    assert 2 < gradients.overhead / gradients.decoder < 5


# ------------------------------------------------------------------------------------------------ saboteurs


class _NotAside(Aside):
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


def test_a_wrong_cost_model_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cost.layer_flops
    monkeypatch.setattr(cost, "layer_flops", lambda layer, tokens, keys, queries: real(layer, tokens, keys, tokens))
    with pytest.raises(AssertionError):
        count("llava", HARD["zipvl_attention"]).assert_agrees()


def test_forgotten_steps_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cost.Step, "flops", lambda self, adapter, stored: self.bare(adapter))
    with pytest.raises(AssertionError):
        count("llava", lazyllm(keep_ratio=0.6, layers=(1, 2, 4))).assert_agrees()


@pytest.mark.parametrize(
    ("name", "where"), [("cross_modal_low_rank", kv.factorised.LowRankSegment), ("kivi", kv.quantised.QuantisedSegment)]
)
def test_forgotten_reading_is_seen(name: str, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "extra_flops", lambda self, rows: 0)
    with pytest.raises(AssertionError):
        count("llava", HARD[name]).assert_agrees()


def test_plugins_that_work_unseen_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # rows that a tap computes would count as the model's
    monkeypatch.setattr(tap, "Aside", _NotAside)
    with pytest.raises(AssertionError):
        count("llava", HARD["h2o"]).assert_agrees()


def test_operations_outside_of_torch_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # a kernel that is reached by no operation of torch counts nothing
    monkeypatch.setattr(fast, "_values", lambda weights, pair, piece: weights.new_zeros(*weights.shape[:2], 16))
    with pytest.raises(AssertionError):
        count("llava", HARD["kivi"]).assert_agrees()
