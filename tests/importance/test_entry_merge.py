"""What merged entries become: published formulas against a loop, exactness of multiplicities, and who is left alone."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.importance.mergeable import Entries, entries
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.entry_assign import Assignment, assign_by_key
from vlm_eff.importance.entry_merge import MergedEntries, Mixing, log_multiplicity, merge_entries

MIXINGS = get_args(Mixing)


def assign(e: Entries) -> Assignment:
    return assign_by_key(e.keys, e.kept, e.present, e.modality, e.protected)


def merge(e: Entries, mixing: Mixing = "counted", *, effective: bool = False) -> MergedEntries:
    mass = e.mass if mixing == "mass" else None
    return merge_entries(
        e.keys, e.values, e.multiplicity, e.kept, e.present, assign(e), mixing, mass=mass, effective=effective
    )


def mixed_by_hand(e: Entries, x: Tensor, at: tuple[int, int, int], members: list[int], mixing: Mixing) -> Tensor:
    b, h, i = at
    cosine = assign(e).cosine.double()
    m, a, n = e.multiplicity[b, h], e.mass[b, h], len(members)
    made = x[b, h, i]
    if mixing == "average":
        return (made + sum(x[b, h, j] for j in members)) / (n + 1)
    if mixing == "pivotal":
        return (made + sum((x[b, h, j] + x[b, h, i]) / 2 for j in members)) / (n + 1)
    if mixing == "weighted":
        return (made + sum(cosine[b, h, j] * x[b, h, j] for j in members)) / (n + 1)
    weight = a if mixing == "mass" else m
    every = [i, *members]
    return sum(weight[j] * x[b, h, j] for j in every) / sum(weight[j] for j in every)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mixing", MIXINGS)
def test_equals_a_loop(mixing: Mixing, seed: int) -> None:
    e = entries(seed)
    target, made, merged = assign(e).target, merge(e, mixing), 0
    for b in range(3):
        for h in range(2):
            kept = (e.kept & e.present)[b, h].nonzero().flatten().tolist()
            assert made.index[b, h, made.valid[b, h]].tolist() == kept
            for place, i in enumerate(kept):
                members = [j for j in range(12) if target[b, h, j] == i and j != i]
                merged += len(members)
                for x, got in ((e.keys, made.keys), (e.values, made.values)):
                    want = mixed_by_hand(e, x, (b, h, i), members, mixing)
                    torch.testing.assert_close(got[b, h, place], want, atol=1e-12, rtol=0)
                stands = e.multiplicity[b, h, [i, *members]].sum()
                torch.testing.assert_close(made.multiplicity[b, h, place], stands)
    assert merged > 5


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_who_takes_nobody_in_is_untouched_and_fillers_are_empty(mixing: Mixing, dtype: torch.dtype) -> None:
    e = entries(1, dtype)
    made, target = merge(e, mixing), assign(e).target
    assert made.keys.dtype == made.values.dtype == dtype
    takes = torch.zeros(3, 2, 13, dtype=torch.bool)
    takes.scatter_(2, torch.where((target >= 0) & ~e.kept, target, 12), True)
    alone = made.valid & ~takes.gather(2, made.index)
    assert alone.any() and (made.valid & ~alone).any() and (~made.valid).any()
    for x, got in ((e.keys, made.keys), (e.values, made.values)):
        before = x.gather(2, made.index[..., None].expand_as(got))
        assert torch.equal(got[alone], before[alone])
        assert not (got == before).all(-1)[made.valid & ~alone].any()
        assert (got[~made.valid] == 0).all()
    assert torch.equal(
        made.multiplicity[alone], e.multiplicity.gather(2, made.index)[alone].to(made.multiplicity.dtype)
    )
    assert (made.multiplicity[~made.valid] == 0).all()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_multiplicities_are_conserved_but_for_what_has_no_target(mixing: Mixing) -> None:
    e = entries()
    lost = e.multiplicity.masked_fill(~e.present | (assign(e).target >= 0), 0).sum(2)
    every = e.multiplicity.masked_fill(~e.present, 0).sum(2)
    assert (lost > 0).all()
    torch.testing.assert_close(merge(e, mixing).multiplicity.sum(2), every - lost)
    # where all may go somewhere, all are there in the end
    free = replace(e, modality=torch.zeros_like(e.modality), protected=torch.zeros_like(e.protected))
    torch.testing.assert_close(merge(free, mixing).multiplicity.sum(2), every)


def attend(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return (keys @ query + bias).softmax(-1) @ values


def test_the_worked_example() -> None:
    keys = torch.tensor([[[[0.5, 0.1], [0.5, 0.1], [1, -1]]]], dtype=torch.float64)
    values = torch.tensor([[[[1.0, 0], [1, 0], [0, 2]]]], dtype=torch.float64)
    query = torch.tensor([1.0, 2.0], dtype=torch.float64)
    kept = torch.tensor([[[True, False, True]]])
    every, one = torch.ones_like(kept), torch.ones(1, 1, 3, dtype=torch.float64)
    who = assign_by_key(keys, kept, every, torch.zeros(1, 3), torch.zeros_like(kept))
    made = merge_entries(keys, values, one, kept, every, who)
    assert made.multiplicity.flatten().tolist() == [2, 1]
    k, v, bias = made.keys[0, 0], made.values[0, 0], log_multiplicity(made.multiplicity[0, 0])
    torch.testing.assert_close(attend(query, k, v, bias), attend(query, keys[0, 0], values[0, 0]), atol=1e-15, rtol=0)
    fixture = {"atol": 5e-5, "rtol": 0}
    torch.testing.assert_close(attend(query, k, v, bias), query.new_tensor([0.9163, 0.1674]), **fixture)
    torch.testing.assert_close(attend(query, k, v), query.new_tensor([0.8455, 0.3089]), **fixture)


@pytest.mark.parametrize("mixing", ["average", "pivotal", "weighted", "counted", "mass"])
def test_equal_entries_merge_exactly_with_multiplicity_only(mixing: Mixing) -> None:
    g = torch.Generator().manual_seed(3)
    three = torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    name = torch.tensor([0, 1, 0, 2, 1, 0, 0, 2])
    keys, values = three[:, name][:, None, None]
    kept = torch.tensor([True, True, False, True, False, False, False, False])[None, None]
    every, one = torch.ones_like(kept), torch.ones(1, 1, 8, dtype=torch.float64)
    who = assign_by_key(keys, kept, every, torch.zeros(1, 8), torch.zeros_like(kept))
    mass = torch.rand(1, 1, 8, generator=g, dtype=torch.float64) if mixing == "mass" else None
    made = merge_entries(keys, values, one, kept, every, who, mixing, mass=mass)
    query = torch.randn(5, generator=g, dtype=torch.float64)
    want = attend(query, keys[0, 0], values[0, 0])
    bias = log_multiplicity(made.multiplicity[0, 0])
    # the cosine comes in float32
    slack = 1e-6 if mixing == "weighted" else 1e-14
    torch.testing.assert_close(attend(query, made.keys[0, 0], made.values[0, 0], bias), want, atol=slack, rtol=0)
    assert (attend(query, made.keys[0, 0], made.values[0, 0]) - want).abs().max() > 0.01


def test_merging_in_two_rounds_equals_one() -> None:
    keys, values = torch.randn(2, 1, 1, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.tensor([[[0, 0, 2, 2, 2, 0]]])
    one = torch.ones(1, 1, 6, dtype=torch.float64)
    there = torch.ones(1, 1, 6, dtype=torch.bool)
    first = merge_entries(keys, values, one, target == torch.arange(6), there, Assignment(target, one))
    assert first.multiplicity.tolist() == [[[3, 3]]] and not torch.allclose(first.keys[:, :, 0], keys.mean(2))
    # then an entry on its own takes in one that stands for three
    keys = torch.cat([keys[:, :, :1], first.keys[:, :, :1]], 2)
    values = torch.cat([values[:, :, :1], first.values[:, :, :1]], 2)
    count = torch.tensor([[[1.0, 3]]], dtype=torch.float64)
    who = Assignment(torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2))
    kept = torch.tensor([[[True, False]]])
    second = merge_entries(keys, values, count, kept, there[:, :, :2], who)
    torch.testing.assert_close(second.keys[:, :, 0], (keys[:, :, 0] + 3 * keys[:, :, 1]) / 4)
    torch.testing.assert_close(second.values[:, :, 0], (values[:, :, 0] + 3 * values[:, :, 1]) / 4)
    assert second.multiplicity.tolist() == [[[4]]]
    # the published average forgets that the second stood for three
    plain = merge_entries(keys, values, count, kept, there[:, :, :2], who, "average")
    torch.testing.assert_close(plain.keys[:, :, 0], keys.mean(2))


def test_mass_with_effective_count_is_exact_for_the_query_it_comes_from() -> None:
    e = entries()
    g = torch.Generator().manual_seed(5)
    query = torch.randn(4, generator=g, dtype=torch.float64)
    for b, h in ((0, 0), (1, 1)):
        there = e.present[b, h] & (assign(e).target[b, h] >= 0)
        logits = (e.keys[b, h] @ query + e.multiplicity[b, h].log()).masked_fill(~there, -torch.inf)
        e.mass[b, h] = logits.softmax(-1)
        made = merge(e, "mass", effective=True)
        seen = made.valid[b, h]
        bias = log_multiplicity(made.multiplicity[b, h, seen])
        got = attend(query, made.keys[b, h, seen], made.values[b, h, seen], bias)
        torch.testing.assert_close(got, logits[there].softmax(-1) @ e.values[b, h, there], atol=1e-13, rtol=0)
        plain = merge(e, "mass")
        bias = log_multiplicity(plain.multiplicity[b, h, seen])
        other = attend(query, plain.keys[b, h, seen], plain.values[b, h, seen], bias)
        assert (other - got).abs().max() > 1e-3
        assert (made.multiplicity[b, h] <= plain.multiplicity[b, h] + 1e-12).all()


def test_without_any_mass_all_count() -> None:
    e = entries()
    e.mass[0] = 0
    mass, counted = merge(e, "mass", effective=True), merge(e)
    torch.testing.assert_close(mass.keys[0], counted.keys[0])
    torch.testing.assert_close(mass.multiplicity[0], counted.multiplicity[0])
    assert not torch.allclose(mass.keys[1], counted.keys[1])


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_row_does_not_depend_on_its_neighbours(mixing: Mixing) -> None:
    e = entries()
    together = merge(e, mixing)
    for row in range(3):
        alone = merge(e.row(row), mixing)
        size = alone.index.shape[2]
        assert torch.equal(together.valid[row, :, :size], alone.valid[0])
        assert not together.valid[row, :, size:].any()
        for name in ("keys", "values", "multiplicity"):
            torch.testing.assert_close(getattr(together, name)[row, :, :size], getattr(alone, name)[0])


@pytest.mark.parametrize("mixing", MIXINGS)
def test_what_is_not_there_has_no_influence(mixing: Mixing) -> None:
    e = entries()
    other = replace(e, keys=e.keys.masked_fill(~e.present[..., None], 7.0), multiplicity=e.multiplicity.clone())
    other.multiplicity[~e.present] = 9
    other.kept = e.kept | ~e.present
    assert torch.equal(merge(e, mixing).keys, merge(other, mixing).keys)
    assert torch.equal(merge(e, mixing).multiplicity, merge(other, mixing).multiplicity)


def test_nothing_kept_and_everything_kept() -> None:
    e = entries()
    assert merge(replace(e, kept=torch.zeros_like(e.kept))).keys.shape == (3, 2, 0, 4)
    made = merge(replace(e, kept=torch.ones_like(e.kept)), "pivotal")
    assert torch.equal(made.keys[made.valid], e.keys[e.present])


def test_one_entry_needs_no_bias_and_a_filler_gets_none() -> None:
    made = log_multiplicity(torch.tensor([1.0, 0.0, 4.0]))
    assert made[:2].tolist() == [0.0, 0.0] and made[2] == pytest.approx(math.log(4))


def test_wrong_choices_are_refused() -> None:
    e = entries()
    given = (e.keys, e.values, e.multiplicity, e.kept, e.present, assign(e))
    with pytest.raises(ConfigError, match="mixing='sum'"):
        merge_entries(*given, "sum")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="without mass"):
        merge_entries(*given, "mass")
    with pytest.raises(ConfigError, match="with mass"):
        merge_entries(*given, "average", mass=e.mass)
    with pytest.raises(ConfigError, match="effective=True"):
        merge_entries(*given, effective=True)
