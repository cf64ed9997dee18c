"""ZipVL's prefill: how many tokens attend, which ones, and that they alone do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.oracle import bypassed_tokens
from tests.tiny import tiny_inputs
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.core.plugin import BindContext
from vlm_eff.importance.adaptive import mass_count
from vlm_eff.importance.attention import important
from vlm_eff.tokens import zipvl_attention


def definition(matrix: Tensor, inputs: Any, keep_mass: float) -> Tensor:
    """Who attends [B, S], by the paper's words from the whole matrix [B, H, S, S]: counted one by one."""
    candidates = image_tokens(inputs.family, inputs)
    stays = ~candidates
    for row, real in enumerate(inputs["attention_mask"].bool()):
        slots = real.nonzero()[:, 0].tolist()
        weights = matrix[row].double().mean(0)
        got = {j: sum(float(weights[i, j]) for i in slots) for j in slots}
        looks = {j: sum(float(weights[i, j]) > 0 for i in slots) for j in slots}
        count, held = 0, 0.0
        for value in sorted(got.values(), reverse=True):
            count, held = count + 1, held + value
            if held >= keep_mass * len(slots):
                break
        best = sorted(slots, key=lambda j: (-got[j] / looks[j], j))[:count]
        stays[row, best] = True
    return stays


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_the_tokens_that_hold_the_mass_attend(family: str, pad: str) -> None:
    """With every row a probe the sets follow from the full matrix of the very layer, whatever earlier layers did."""
    inputs, model = tiny_inputs(family, (1, 2), pad=pad), kit.model_of(family)
    run = kit.attached(model, inputs, zipvl_attention(keep_mass=0.6, layers=(1, 2), recent=1.0, random=0.0))
    passed = kit.bypassed(run.handle, inputs)
    for layer in (1, 2):
        # layer 2 is seen as layer 1 left it
        earlier = {index: gone for index, gone in passed.items() if index < layer}
        copy = kit.model_of(family, "eager")
        with bypassed_tokens(copy, earlier):
            matrix = _attentions(copy, inputs, layer)
        assert torch.equal(~passed[layer], definition(matrix, inputs, 0.6))
        assert bool(passed[layer].any())


def _attentions(model: Any, inputs: Any, layer: int) -> Tensor:
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions[layer]  # type: ignore[no-any-return]


@pytest.mark.parametrize("row", [torch.tensor([5.0, 1.0, 3.0, 1.0]), torch.rand(50)])
def test_the_count_is_the_smallest_and_grows_with_the_mass(row: Tensor) -> None:
    valid, before = torch.ones(1, len(row), dtype=torch.bool), 0
    ordered = row.sort(descending=True).values
    for mass in (0.1, 0.3, 0.5, 0.75, 0.9, 0.975, 1.0):
        count = int(mass_count(row[None], mass, valid))
        assert float(ordered[:count].sum()) >= mass * float(row.sum()) - 1e-5
        assert mass == 1.0 or float(ordered[: count - 1].sum()) < mass * float(row.sum())
        assert count >= before
        before = count
    assert before == len(row)


def test_under_uniform_causal_attention_looks_take_the_head_start_away() -> None:
    """Row i gives 1/(i + 1) to each of its keys: sums fall from H(n) to 1/n, a factor of n * H(n), per look of H(n)."""
    length = 64
    rows = torch.tril(torch.ones(length, length, dtype=torch.double))
    mass, looks = (rows / rows.sum(1, keepdim=True)).sum(0), rows.sum(0)
    assert bool((mass[:-1] > mass[1:]).all())
    harmonic = sum(1 / i for i in range(1, length + 1))
    assert float(mass[0] / mass[-1]) == pytest.approx(length * harmonic)
    assert float((mass / looks)[0] / (mass / looks)[-1]) == pytest.approx(harmonic)
    # where every look is worth the same, no token is better than another, and the lower index wins
    chosen = important(looks[None], looks[None], 0.5, torch.ones(1, length, dtype=torch.bool))
    count = int(mass_count(looks[None], 0.5, torch.ones(1, length, dtype=torch.bool)))
    assert chosen[0].nonzero()[:, 0].tolist() == list(range(count))


def test_late_tokens_are_not_at_a_disadvantage() -> None:
    """A token that three rows could see and all looked at wins over one that thirty could see and five looked at."""
    mass, looks = torch.tensor([[5.0, 3.0, 0.1]]), torch.tensor([[30, 3, 30]])
    chosen = important(mass, looks, 0.3, torch.ones(1, 3, dtype=torch.bool))
    assert chosen.tolist() == [[False, True, False]]


def test_more_mass_lets_fewer_bypass() -> None:
    inputs, model = tiny_inputs("llava", (1,)), kit.model_of("llava")
    counts = []
    for mass in (0.3, 0.5, 0.7, 0.9, 0.999):
        run = kit.attached(model, inputs, zipvl_attention(keep_mass=mass, layers=(1,), recent=1.0, random=0.0))
        counts.append(len(run.handle.attended(1)[0]))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_probes_are_drawn_from_the_prompt_and_the_seed() -> None:
    inputs, model = tiny_inputs("llava", (1, 2)), kit.model_of("llava")
    sets = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        run = kit.attached(model, inputs, zipvl_attention(keep_mass=0.6, random=0.2, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        sets.append([[row.tolist() for row in run.handle.attended(layer)] for layer in range(kit.LAYERS)])
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]


@pytest.mark.parametrize("name", ["keep_mass", "recent", "random"])
@pytest.mark.parametrize("value", [-0.1, 1.5, True, "x"])
def test_fractions_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        zipvl_attention(**{name: value})


def test_layers_are_all_or_those_named() -> None:
    assert [site.layer for site in zipvl_attention().bind(BindContext("llava", 4)).sites] == [0, 1, 2, 3]
    assert [site.layer for site in zipvl_attention(layers=(1, 3)).bind(BindContext("llava", 4)).sites] == [1, 3]
    with pytest.raises(CapabilityError, match="layer 9"):
        zipvl_attention(layers=(9,)).bind(BindContext("llava", 4))
