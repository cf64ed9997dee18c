"""Entropy over the modalities of queries, against eager attention in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.kvcache.seen import eager, planned
from tests.tiny import row, tiny_inputs, visual_mask
from vlm_eff.core.cache import EXACT, CacheSums
from vlm_eff.core.errors import ConfigError
from vlm_eff.kvcache import entropy, entropy_regularised
from vlm_eff.kvcache.modality import ModalityEntropy

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")


def parts(weight: Tensor, real: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy over text and image queries, and mass, of one row [Hkv, S] float64; weight [H, S, S]."""
    weight = weight.double()
    means = torch.stack([weight[:, real & (visual == kind)].mean(1) for kind in (False, True)], -1)
    means = means.view(2, -1, *means.shape[1:]).sum(1)
    share = means / means.sum(-1, keepdim=True)
    mass = weight[:, real].sum(1).view(2, -1, len(real)).sum(1)
    return torch.special.entr(share).sum(-1), mass


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [None, 9], ids=["at once", "in chunks"])
def test_scores_are_those_of_eager_attention(family: str, chunk: int | None) -> None:
    inputs = tiny_inputs(family, (2, 1))
    model, weights = eager(family, inputs)
    real, visual = kit.real(inputs), visual_mask(inputs)
    seen = planned(model, inputs, entropy(keep_ratio=0.4), **({} if chunk is None else {"prefill_chunk_size": chunk}))
    for layer in (1, 4):
        entries = seen.entries[layer]
        plain, both = ModalityEntropy()(entries), ModalityEntropy(0.1, faithful=True)(entries)
        ours = ModalityEntropy(0.1)(entries)
        for index in range(2):
            there = real[index]
            want, mass = (one[:, there] for one in parts(weights[layer][index], there, visual[index]))
            joined = mass / mass.sum(1, keepdim=True) + 0.1 * want / torch.log(torch.tensor(2.0))
            torch.testing.assert_close(both[index][:, there].double(), joined, atol=1e-5, rtol=1e-4)
            # the first of n entries was seen by n queries, the last by one
            count = int(there.sum())
            mean = mass / torch.arange(count, 0, -1)
            bonus = 0.1 * want / torch.log(torch.tensor(2.0))
            joined = mean / mean.mean(1, keepdim=True) + bonus
            got = ours[index][:, there].double() * count
            torch.testing.assert_close(got, joined, atol=1e-4, rtol=1e-4)
            for kind in (False, True):
                inside = (visual[index] == kind)[there]
                order = plain[index][:, there][:, inside].argsort(1, descending=True)
                sorted_ = want[:, inside].gather(1, order)
                assert (sorted_.diff(dim=1) <= 1e-5).all()


def test_no_weight_ranks_by_mass_and_text_after_the_image_has_no_entropy() -> None:
    inputs = tiny_inputs("llava", (1,))
    seen = planned(kit.model_of("llava"), inputs, entropy_regularised(weight=0.0))
    last = int(visual_mask(inputs)[0].nonzero()[-1])
    for entries in seen.entries.values():
        mass = entries.sums(CacheSums("modality")).got.sum(-1)
        order = ModalityEntropy(0.0, faithful=True)(entries).argsort(2, descending=True)
        assert (mass.gather(2, order).diff(dim=2) <= 1e-5).all()
        bonus = ModalityEntropy(1.0, faithful=True)(entries) - ModalityEntropy(0.0, faithful=True)(entries)
        assert not bonus[:, :, last + 1 :].any()
        assert bonus[:, :, 1:last].max() > 0.1


def test_each_modality_keeps_its_share_and_the_question_stays() -> None:
    inputs = tiny_inputs("qwen3_vl", (2, 1), text=(8, 9))
    seen = planned(kit.model_of("qwen3_vl"), inputs, entropy(keep_ratio=0.5, recent=3))
    for layer, stored in seen.stored.items():
        entries = seen.entries[layer]
        kept = (stored.form == EXACT) & entries.present
        for kind in (0, 1):
            there = entries.present & (entries.modality == kind)
            share = (kept & there).sum(2) / there.sum(2)
            assert ((share > 0.3) & (share < 0.75)).all(), share
        assert kept[:, :, -3:].all()


@pytest.mark.parametrize("plugin", [entropy(keep_ratio=0.5, recent=2), entropy_regularised(keep_ratio=0.5, recent=2)])
def test_rows_do_not_depend_on_their_neighbours(plugin: Any) -> None:
    """Also where only one of them has a video or pictures at all."""
    inputs, model = tiny_inputs("qwen2_5_vl", (2, 1), video="mixed"), kit.model_of("qwen2_5_vl")
    both = planned(model, inputs, plugin)
    assert {int(kind) for kind in both.entries[0].modality.unique()} >= {0, 1, 2}
    for index in range(2):
        alone = planned(model, row(inputs, index), plugin)
        for layer, entries in both.entries.items():
            got = plugin.score(entries)[index][:, kit.real(inputs)[index]]
            torch.testing.assert_close(got, plugin.score(alone.entries[layer])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), "much"])
def test_arguments_are_checked(weight: Any) -> None:
    with pytest.raises(ConfigError):
        entropy_regularised(weight=weight)
    with pytest.raises(ConfigError):
        ModalityEntropy(0.1, CacheSums("mass"))
