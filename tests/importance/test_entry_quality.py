"""What deleting entries costs: the worked example, brute force in float64, actual deletions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.importance.entries import Entries, golden, near, random_entries, same_alone, worked
from vlm_eff.importance.entry_quality import deletion_cost, modality_weights

SEEDS = range(3)
FORMS = ("exact", "value", "key", "cross", "joint")


def cost(entries: Entries, form: str = "exact", **options) -> torch.Tensor:
    rows = (entries.row_valid, entries.looks)
    return deletion_cost(entries.attention, entries.logits, entries.values, *rows, form=form, **options)


@pytest.mark.parametrize(
    "form, want",
    [
        ("value", ".0792 .0611 .0049 .0308 .1837 .0339 .0130 .0112"),
        ("key", ".3787 .1231 .0058 .0919 .7885 .2529 .0213 .0063"),
        ("joint", ".7898 .3546 .0203 .2261 1.7233 .4537 .0654 .0342"),
        ("exact", ".1414 .0531 .0082 .0492 .2990 .1023 .0184 .0075"),
    ],
)
def test_worked_example(form: str, want: str) -> None:
    near(cost(worked().only_rows(6), form)[0, 0], golden(want))


def change_of(entries: Entries, removed: Tensor) -> Tensor:
    """Length of the change of each head's output when entries [B, S] or [B, Hkv, S] go [B, H, R]."""
    share = entries.attention.shape[1] // entries.groups
    held = entries.values.repeat_interleave(share, 1)
    gone = removed[:, None] if removed.dim() == 2 else removed.repeat_interleave(share, 1)
    hidden = ~(entries.looks & entries.row_valid[..., None])[:, None]
    weights = entries.attention.masked_fill(hidden, 0.0)
    left = weights.masked_fill(gone[:, :, None], 0.0)
    return (left / left.sum(3, keepdim=True).clamp(min=1e-300) @ held - weights @ held).norm(dim=-1)


def brute(entries: Entries, form: str, centre: bool, beta: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Rows, heads and entries one by one; `maps` [H, D, Dh] is the output projection itself."""
    batch, heads, rows, size = entries.attention.shape
    made = torch.zeros(batch, entries.groups, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            v = entries.values[b, h // 2] @ maps[h].T
            for q in range(rows):
                looked = [j for j in range(size) if entries.looks[b, q, j]] if entries.row_valid[b, q] else []
                if not looked:
                    continue
                a, z = entries.attention[b, h, q], entries.logits[b, h, q]
                offset = z[looked].mean() if centre else 0.0
                o = sum(a[j] * v[j] for j in looked)
                for j in looked:
                    left = [i for i in looked if i != j]
                    rest = sum(a[i] * v[i] for i in left) / sum(a[i] for i in left) if left else 0 * o
                    x = z[j] - offset
                    parts = {
                        "exact": (rest - o).square().sum(),
                        "value": a[j] ** 2 * v[j].square().sum(),
                        "key": (a[j] * x) ** 2 * (v[j] - o).square().sum(),
                        "cross": 2 * a[j] ** 2 * x * (v[j].square().sum() - o @ v[j]),
                    }
                    parts["joint"] = parts["value"] + parts["key"] + parts["cross"]
                    made[b, h // 2, j] += parts[form] * beta[entries.modality[b, j], entries.row_modality[b, q]]
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_brute_force_agrees(seed: int, form: str) -> None:
    entries = random_entries(seed)
    even, eye = torch.ones(2, 2).double(), torch.eye(4).double().expand(4, 4, 4)
    torch.testing.assert_close(cost(entries, form), brute(entries, form, False, even, eye), atol=1e-11, rtol=1e-11)
    beta = torch.tensor([[1.0, 3.0], [0.5, 2.0]]).double()
    maps = torch.randn(4, 7, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = modality_weights(beta, entries.row_modality, entries.modality)
    got = cost(entries, form, centre=True, pair_weights=weights, metric=maps.transpose(1, 2) @ maps)
    torch.testing.assert_close(got, brute(entries, form, True, beta, maps), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_exact_form_is_the_actual_deletion(seed: int) -> None:
    entries = random_entries(seed)
    got = cost(entries)
    for j in range(9):
        removed = torch.zeros(2, 9, dtype=torch.bool)
        removed[:, j] = True
        change = change_of(entries, removed)
        want = change.square().view(2, 2, 2, -1).sum((2, 3))
        torch.testing.assert_close(got[:, :, j], want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_meter_is_a_softmax_over_what_is_left(seed: int) -> None:
    entries = random_entries(seed)
    made = torch.Generator().manual_seed(seed)
    removed = torch.rand(2, 2, 9, generator=made) < 0.4
    got = change_of(entries, removed)
    assert bool(got.isfinite().all()) and not bool(got[~entries.row_valid[:, None].expand_as(got)].any())
    for b in range(2):
        for h in range(4):
            for q in entries.row_valid[b].nonzero()[:, 0].tolist():
                v, z = entries.values[b, h // 2], entries.logits[b, h, q]
                before = z[entries.looks[b, q]].softmax(0) @ v[entries.looks[b, q]]
                left = entries.looks[b, q] & ~removed[b, h // 2]
                after = z[left].softmax(0) @ v[left] if bool(left.any()) else 0 * before
                assert float(got[b, h, q]) == pytest.approx(float((after - before).norm()), abs=1e-12)
    nothing = torch.zeros(2, 9, dtype=torch.bool)
    same = change_of(entries, nothing)
    assert float(same.max()) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_row_gets_what_it_gets_alone(form: str) -> None:
    same_alone(random_entries(5), lambda e: cost(e, form, centre=True))


def test_offsets_of_the_logits_move_the_key_forms_only_without_a_centre() -> None:
    entries = random_entries(1)
    for form in FORMS:
        moved = replace(entries, logits=entries.logits + 3)
        assert torch.allclose(cost(moved, form), cost(entries, form)) == (form in ("exact", "value"))
        torch.testing.assert_close(cost(moved, form, centre=True), cost(entries, form, centre=True))


def test_an_entry_that_has_nearly_all_the_mass_keeps_its_cost_in_float32() -> None:
    logits = torch.tensor([[[[30.0, 1.0, 0.0]]]])
    values = torch.tensor([[[[100.0, 3], [1, 0], [0, 1]]]])
    every = torch.ones(1, 1, 3, dtype=torch.bool)
    rows = (every[:, 0, :1], every)
    got = deletion_cost(logits.softmax(-1), logits, values, *rows)
    want = deletion_cost(logits.double().softmax(-1), logits.double(), values.double(), *rows)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-4)
    assert float(want[0, 0, 0]) > 9000
    # and the only entry of a row costs the whole output
    only = deletion_cost(torch.ones(1, 1, 1, 1), logits[..., :1], values[:, :, :1], *(m[..., :1] for m in rows))
    assert float(only) == pytest.approx(100**2 + 3**2)
    assert bool(deletion_cost(logits.softmax(-1), logits, values, ~rows[0], every).eq(0).all())


def test_attention_mass_ranks_worse_than_what_the_output_says() -> None:
    def ranks(x: torch.Tensor) -> torch.Tensor:
        return x.argsort(-1).argsort(-1).double()

    made = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 8, 200, generator=made).double() * 2
    values = torch.randn(1, 1, 200, 16, generator=made).double() * torch.rand(200, 1, generator=made).mul(3).exp()
    a, every = logits.softmax(-1), torch.ones(1, 8, 200, dtype=torch.bool)
    exact = ranks(deletion_cost(a, logits, values, every[:, :, 0], every)[0, 0])
    near_it = ranks(deletion_cost(a, logits, values, every[:, :, 0], every, form="value")[0, 0])
    mass = ranks(a.sum((0, 1, 2)))
    agree = [float(torch.corrcoef(torch.stack([exact, other]))[0, 1]) for other in (near_it, mass)]
    assert agree[0] > 0.96 > agree[1] + 0.02
