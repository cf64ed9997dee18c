"""SparseVLM: the published counts, the raters, the stages and the recycled tokens, each by another route."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.contracts.checks_sets import entry_embeds
from tests.oracle import attention_rows, decoder_layers, hidden_columns
from tests.tiny import TinyInputs, tiny_inputs, visual_mask
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext
from vlm_eff.importance.attention import raters
from vlm_eff.tokens import sparsevlm
from vlm_eff.tokens.reduce.recycle import Recycle

# tokens averaged over 32 layers that the published lists mean, and what the code runs
NOMINAL = {True: (192.0, 128.6, 96.9, 64.8), False: (192.4, 128.0, 96.8, 64.4)}
EXECUTED = {True: (206.5, 145.4, 114.1, 82.2), False: (206.8, 144.1, 113.9, 81.8)}
LISTS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


@pytest.mark.parametrize("recycle", [True, False])
def test_the_published_lists_mean_their_budgets(recycle: bool) -> None:
    for at, budget in enumerate((192, 128, 96, 64)):
        for faithful, want in ((False, NOMINAL), (True, EXECUTED)):
            made = sparsevlm(keep_ratio=budget / 576, recycle=recycle, faithful=faithful)
            bound = made.bind(BindContext("llava", 32))
            assert sum(bound.asked(576, 32)) / 32 == pytest.approx(want[recycle][at], abs=0.06)
            assert [site.layer for site in bound.sites] == ([3, 7, 16] if faithful else [2, 6, 15])
        if recycle:
            assert tuple(stage.keep.of_count(576, 576) for stage in made.stages) == LISTS[budget]


def test_other_ratios_lie_between_the_lists() -> None:
    asked = [sum(sparsevlm(keep_ratio=r / 100).asked(576, 32)) / 32 for r in range(8, 101)]
    assert all(after >= before - 1 for before, after in pairwise(asked))
    assert asked[-1] == 576
    for ratio, got in zip(range(8, 101), asked, strict=True):
        assert abs(got - ratio * 5.76) < 12


def test_a_shallow_decoder_gets_three_stages() -> None:
    assert [site.layer for site in sparsevlm().bind(BindContext("llava", 6)).sites] == [1, 2, 3]
    with pytest.raises(ConfigError, match="too shallow"):
        sparsevlm().bind(BindContext("llava", 3))


@pytest.mark.parametrize("wrong", [(3, 2), (1, 2, 3, 4), "123", 7, (0, 1, 2)])
def test_counts_are_three_numbers(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        sparsevlm(counts=wrong)
    with pytest.raises(ConfigError):
        sparsevlm(counts=(3, 2, 1), keep_ratio=0.5)


def test_raters_by_hand() -> None:
    """Two image tokens, three words; products 0 but for one word that both image tokens are like; the fourth column of
    words does not exist."""
    image = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [9.0, 9.0]]])
    words = torch.tensor([[[0.0, 5.0], [3.0, 0.0], [0.0, 1.0], [50.0, 0.0]]])
    exists = torch.tensor([[True, True, True, False]])
    chosen = raters(image, words, torch.tensor([[True, True, False]]), exists)
    assert chosen.tolist() == [[False, True, False, False]]
    alike = raters(image, words[:, :1].expand(-1, 4, -1), torch.tensor([[True, True, True]]), exists)
    assert not bool(alike.any()), "nobody is above the mean of equals"


def raters_of(embeds: Tensor, image: Tensor, text: list[int], last: int) -> list[int]:
    """Raters of one row by the formula, in float64: embeds [S, D], image [S] mask, positions of the words."""
    visual = image.nonzero()[:, 0].tolist()
    share = dict.fromkeys(text, 0.0)
    for token in visual:
        product = {word: float(embeds[token].double() @ embeds[word].double()) for word in text}
        most = max(product.values())
        total = sum(math.exp(value - most) for value in product.values())
        for word in text:
            share[word] += math.exp(product[word] - most) / total / len(visual)
    mean = sum(share.values()) / len(share)
    return [word for word in text if share[word] > mean * (1 + 1e-5)] or [last]


def clusters_of(states: Tensor, count: int, near: int = 5) -> tuple[list[int], list[int]]:
    """Density-peak clusters by the textbook: centres, and the centre of each point."""
    points = states.double()
    size = points.shape[1] ** 0.5
    away = [[float((a - b).norm()) / size for b in points] for a in points]
    number = range(len(points))
    density = [math.exp(-sum(d * d for d in sorted(row)[:near]) / min(near, len(points))) for row in away]
    denser = [[j for j in number if (density[j], -j) > (density[i], -i)] for i in number]
    parent = [min((away[i][j] for j in denser[i]), default=max(away[i])) for i in number]
    centres = sorted(sorted(number, key=lambda i: (-density[i] * parent[i], i))[:count])
    return centres, [i if i in centres else min(centres, key=lambda c: (away[i][c], c)) for i in number]


def stage_of(row: Tensor, places: list[int], keep: int, states: Tensor) -> dict[int, list[int]]:
    """Of one row: each token that stays and whom it stands for. row: scores [S]; states [S, D]."""
    ranked = sorted(places, key=lambda at: (-float(row[at]), at))
    kept, gone = ranked[:keep], ranked[keep:]
    made = {at: [at] for at in kept}
    if not gone:
        return made
    pool = sorted(gone[: min(len(gone), len(gone) * 3 // 10 + 1)])
    centres, home = clusters_of(states[pool], min(len(pool), len(pool) // 10 + 1))
    for centre in centres:
        made[pool[centre]] = [pool[i] for i in range(len(pool)) if home[i] == centre]
    return made


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "gemma3"])
def test_the_first_stage_is_the_definition(family: str, pad: str) -> None:
    """Survivors and merged states, from the eager matrix of layer 1 and the full run's input of layer 2."""
    inputs, model = tiny_inputs(family, (1, 2), pad=pad), kit.model_of(family)
    plugin = sparsevlm(counts=(6, 6, 6), layers=(2, 4, 5))
    run = kit.attached(model, inputs, plugin)
    got = kit.survivors(run.handle, inputs)[2] & image_tokens(family, inputs)
    matrix, embeds = attention_rows(kit.model_of(family, "eager"), inputs, 1), entry_embeds(model, inputs)
    states = _input_of(model, inputs, 2)
    written = kit.written(model, inputs, plugin)[2]
    merged = 0
    for index, candidates in enumerate(image_tokens(family, inputs)):
        text, last = question(inputs, index)
        who = raters_of(embeds[index], candidates, text, last)
        row = matrix[index][:, who].double().mean((0, 1))
        stays = stage_of(row, candidates.nonzero()[:, 0].tolist(), 6, states[index])
        assert got[index].nonzero()[:, 0].tolist() == sorted(stays)
        for seat, members in stays.items():
            torch.testing.assert_close(written[index][seat], states[index, members].mean(0), atol=1e-4, rtol=1e-4)
            merged += len(members) > 1
    assert merged, "nothing was merged"


def _input_of(model: Any, inputs: TinyInputs, layer: int) -> Tensor:
    seen: list[Tensor] = []
    hook = decoder_layers(model)[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with hidden_columns(model, {}):
        kit.forward(model, inputs)
    hook.remove()
    return seen[0]


def question(inputs: TinyInputs, index: int) -> tuple[list[int], int]:
    """Positions of the words after the last placeholder, tags left out, and of the last token."""
    config = kit.model_of(inputs.family).config
    named = {config.get_text_config().bos_token_id, config.get_text_config().eos_token_id}
    for name in ("vision_start_token_id", "vision_end_token_id", "boi_token_index", "eoi_token_index"):
        named.add(getattr(config, name, None))
    ids, real = inputs["input_ids"][index].tolist(), inputs["attention_mask"][index].bool().tolist()
    after = int(visual_mask(inputs)[index].nonzero().max())
    words = [at for at, token in enumerate(ids) if at > after and real[at] and token not in named]
    return words, max(at for at, is_real in enumerate(real) if is_real)


def test_recycled_tokens_are_means_and_their_number_is_the_codes() -> None:
    """int(0.3 n) + 1 of n are clustered, a tenth of them and one more come back."""
    for dropped, want in ((276, 9), (109, 4), (94, 3), (510, 16), (1, 1), (0, 0)):
        assert Recycle().added(dropped) == want


def test_nothing_random_is_in_it() -> None:
    inputs, model = tiny_inputs("llava", (1, 2)), kit.model_of("llava")
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(kit.attached(model, inputs, sparsevlm()).logits)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1])


def test_version_two_drops_and_recycling_moves_the_answer() -> None:
    inputs, model = tiny_inputs("llava", (1,)), kit.model_of("llava")
    settings = {"counts": (6, 5, 4), "layers": (1, 3, 4)}
    with_, without = (kit.attached(model, inputs, sparsevlm(recycle=r, **settings)) for r in (True, False))  # type: ignore[arg-type]
    assert without.handle.stats().last is not None
    assert [stage.got[0] for stage in without.handle.stats().last.stages] == [6, 5, 4]  # type: ignore[union-attr]
    assert [stage.got[0] for stage in with_.handle.stats().last.stages] == [7, 6, 5]  # type: ignore[union-attr]
    kit.differs(with_.logits[:, -1], without.logits[:, -1])
