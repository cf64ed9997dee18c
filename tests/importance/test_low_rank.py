"""Low rank in the metric of queries: optimal, exact where it can be, blind to fillers, calm with degenerate entries."""

import pytest
import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.importance import low_rank
from vlm_eff.importance.low_rank import LowRank, factorise, query_metric, stored_numbers

ROWS, HEADS, SIZE, WIDTH = 2, 2, 30, 8


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Keys [2, 2, 30, 8] and queries [2, 2, 50, 8] that care about other directions than keys spread along."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(ROWS, HEADS, SIZE, WIDTH, generator=g, dtype=torch.float64) * torch.logspace(1, -1, WIDTH)
    queries = torch.randn(ROWS, HEADS, 50, WIDTH, generator=g, dtype=torch.float64) * torch.logspace(-1, 1, WIDTH)
    turn = torch.linalg.qr(torch.randn(ROWS, HEADS, WIDTH, WIDTH, generator=g, dtype=torch.float64)).Q
    return (keys @ turn).to(dtype), (queries @ turn).to(dtype)


def error(x: Tensor, made: LowRank, metric: Tensor) -> Tensor:
    """What `made` loses of `x` in the metric [B, Hkv], by its definition."""
    off = x.double() - made.read().double()
    return torch.einsum("bhpi,bhij,bhpj->bh", off, metric.double(), off)


def metric_by_hand(queries: Tensor, valid: Tensor) -> Tensor:
    made = torch.zeros(ROWS, HEADS, WIDTH, WIDTH, dtype=torch.float64)
    for b in range(ROWS):
        for h in range(HEADS):
            for q in range(queries.shape[2]):
                if valid[b, h, q]:
                    made[b, h] += torch.outer(queries[b, h, q], queries[b, h, q]) / valid[b, h].sum()
            made[b, h] += 1e-4 * made[b, h].trace() / WIDTH * torch.eye(WIDTH)
    return made


def test_metric_is_the_mean_over_the_rows_that_count() -> None:
    _, queries = batch()
    valid = torch.rand(ROWS, HEADS, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    want = metric_by_hand(queries, valid)
    torch.testing.assert_close(query_metric(queries.masked_fill(~valid[..., None], torch.nan), valid), want)
    torch.testing.assert_close(query_metric(queries), metric_by_hand(queries, torch.ones_like(valid)))
    shared = valid[:, :1].expand(-1, HEADS, -1)
    torch.testing.assert_close(query_metric(queries, valid[:, 0]), metric_by_hand(queries, shared))
    assert query_metric(queries.bfloat16()).dtype == torch.float32
    one = torch.eye(WIDTH, dtype=torch.float64).expand(ROWS, HEADS, -1, -1)
    assert torch.equal(query_metric(queries, torch.zeros_like(valid)), one)
    assert torch.equal(query_metric(torch.zeros_like(queries)), one)


def test_metric_error_is_the_mean_squared_error_of_logits() -> None:
    keys, queries = batch()
    metric = query_metric(queries, epsilon=0)
    made = factorise(keys, metric, rank=4)
    off = queries @ keys.mT - queries @ made.read().mT
    torch.testing.assert_close(error(keys, made, metric), off.square().sum(3).mean(2))
    torch.testing.assert_close(made.logits(queries), queries @ made.read().mT)


@pytest.mark.parametrize("seed", range(3))
def test_error_is_the_tail_falls_with_rank_and_beats_plain_svd(seed: int) -> None:
    keys, queries = batch(seed)
    metric = query_metric(queries)
    last = torch.full((ROWS, HEADS), torch.inf, dtype=torch.float64)
    for rank in range(1, WIDTH + 1):
        made, plain = factorise(keys, metric, rank=rank), factorise(keys, rank=rank)
        lost = error(keys, made, metric)
        total = made.spectrum.sum(-1)
        torch.testing.assert_close(total, torch.einsum("bhpi,bhij,bhpj->bh", keys, metric, keys), atol=0, rtol=1e-6)
        torch.testing.assert_close(lost / total, made.spectrum[..., rank:].sum(-1) / total, atol=1e-9, rtol=1e-5)
        assert (lost < last).all()
        if rank < WIDTH:
            # the metric turns away from what keys spread along, so that the gain is more than rounding
            assert (lost < 0.99 * error(keys, plain, metric)).all()
            assert (
                error(keys, plain, torch.eye(WIDTH).expand_as(metric)) < (keys - made.read()).square().sum((2, 3))
            ).all()
        last = lost


@pytest.mark.parametrize("metric", [True, False])
def test_no_other_basis_of_that_rank_loses_less(metric: bool) -> None:
    keys, queries = batch()
    square = query_metric(queries) if metric else torch.eye(WIDTH, dtype=torch.float64).expand(ROWS, HEADS, -1, -1)
    made = factorise(keys, square, rank=3)
    # best coefficients of a slightly turned basis, by weighted least squares
    g = torch.Generator().manual_seed(9)
    for size in (0.001, 0.1, 1):
        basis = made.basis + size * torch.randn(made.basis.shape, generator=g, dtype=torch.float64)
        inner = keys @ square @ basis.mT @ torch.linalg.inv(basis @ square @ basis.mT)
        off = keys - inner @ basis
        assert (torch.einsum("bhpi,bhij,bhpj->bh", off, square, off) > error(keys, made, square)).all()


def test_without_metric_it_is_plain_svd() -> None:
    keys, _ = batch()
    u, s, v = torch.linalg.svd(keys, full_matrices=False)
    one = torch.eye(WIDTH, dtype=torch.float64).expand(ROWS, HEADS, -1, -1)
    for metric in (None, one, 7 * one):
        made = factorise(keys, metric, rank=3)
        torch.testing.assert_close(made.read(), u[..., :3] * s[..., None, :3] @ v[..., :3, :])
        scale = 7 if metric is not None and metric[0, 0, 0, 0] == 7 else 1
        torch.testing.assert_close(made.spectrum, s.square() * scale)


def test_scale_of_the_metric_changes_nothing_that_is_stored() -> None:
    keys, queries = batch()
    metric = query_metric(queries)
    small, large = (factorise(keys, metric * scale, rank=4) for scale in (1e-3, 1e6))
    torch.testing.assert_close(small.read(), large.read())
    assert large.coefficients.abs().max() < 100 * keys.abs().max()
    torch.testing.assert_close(small.spectrum * 1e9, large.spectrum)


@pytest.mark.parametrize(
    ("dtype", "slack"), [(torch.float64, 1e-9), (torch.float32, 2e-4), (torch.float16, 0.1), (torch.bfloat16, 1.0)]
)
def test_full_rank_is_exact(dtype: torch.dtype, slack: float) -> None:
    keys, queries = batch(dtype=dtype)
    for made in (factorise(keys, query_metric(queries), rank=WIDTH), factorise(keys, rank=99)):
        assert made.read().dtype == made.coefficients.dtype == made.basis.dtype == dtype
        assert (made.rank == WIDTH).all() and made.coefficients.shape[3] == WIDTH
        torch.testing.assert_close(made.read(), keys, atol=slack, rtol=0)


def test_rank_by_energy_is_the_smallest_and_rows_read_the_same_alone() -> None:
    keys, queries = batch()
    keys[1, 1] = keys[1, 1, :, :1] * torch.arange(1.0, 9)
    metric = query_metric(queries)
    made = factorise(keys, metric, energy=0.95)
    held = made.spectrum.cumsum(-1) / made.spectrum.sum(-1, keepdim=True)
    for b in range(ROWS):
        for h in range(HEADS):
            want = next(r for r in range(1, 9) if held[b, h, r - 1] >= 0.95)
            assert made.rank[b, h] == want
            assert (made.coefficients[b, h, :, want:] == 0).all() and (made.basis[b, h, want:] == 0).all()
            assert made.encoder is not None and (made.encoder[b, h, :, want:] == 0).all()
            alone = factorise(keys[b : b + 1, h : h + 1], metric[b : b + 1, h : h + 1], energy=0.95)
            assert alone.coefficients.shape[3] == want
            torch.testing.assert_close(alone.read()[0, 0], made.read()[b, h])
            new = torch.randn(1, 1, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            together = made.project(new.expand(ROWS, HEADS, -1, -1), metric=metric)[1][b, h]
            torch.testing.assert_close(alone.project(new, metric=metric[b : b + 1, h : h + 1])[1][0, 0], together)
    assert made.rank[1, 1] == 1 and made.coefficients.shape[3] == int(made.rank.max()) > 1
    for energy in (0.3, 0.5, 0.8, 0.9, 0.97, 0.99, 0.999, float(held[0, 0, 3]) - 1e-9, float(held[0, 0, 3]) + 1e-9):
        assert torch.equal(factorise(keys, metric, energy=energy).rank, (held < energy).sum(-1) + 1)
    assert torch.equal(factorise(keys, metric, energy=1.0).rank, torch.tensor([[8, 8], [8, 1]]))


def test_fillers_have_no_influence() -> None:
    keys, queries = batch()
    metric = query_metric(queries)
    valid = torch.ones(ROWS, HEADS, SIZE, dtype=torch.bool)
    valid[0, :, :9] = False
    valid[1, 1, 20:] = False
    weights = torch.rand(ROWS, HEADS, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    other = keys.masked_fill(~valid[..., None], torch.nan)
    strange = weights.masked_fill(~valid, torch.inf)
    made = factorise(other, metric, rank=4, weights=strange, valid=valid)
    assert (made.read()[~valid] == 0).all()
    for b, h, part in ((0, 0, slice(9, None)), (0, 1, slice(9, None)), (1, 0, slice(0, None)), (1, 1, slice(0, 20))):
        at = slice(b, b + 1), slice(h, h + 1)
        alone = factorise(keys[(*at, part)], metric[at], rank=4, weights=weights[(*at, part)])
        torch.testing.assert_close(alone.read()[0, 0], made.read()[b, h, part])
        torch.testing.assert_close(alone.spectrum[0, 0], made.spectrum[b, h])
    new, seen = other[..., :9, :], valid[0, 0, :9].expand(ROWS, -1)
    assert not seen.any()
    coefficients, missed = made.project(new, seen, metric)
    assert (coefficients == 0).all() and (missed == 0).all()
    half = factorise(other, metric, rank=4, valid=valid[:, :1].expand(-1, HEADS, -1) & valid)
    row = factorise(keys, metric, rank=4, valid=valid[:, 0])
    torch.testing.assert_close(half.read()[0], row.read()[0])


def test_weights_say_whose_error_counts() -> None:
    keys, queries = batch()
    metric = query_metric(queries)
    weights = torch.ones(ROWS, HEADS, SIZE, dtype=torch.float64)
    plain = factorise(keys, metric, rank=3)
    torch.testing.assert_close(factorise(keys, metric, rank=3, weights=weights).read(), plain.read())
    twice = torch.cat([keys, keys[:, :, :5]], 2)
    weights[:, :, :5] = 2
    made = factorise(keys, metric, rank=3, weights=weights)
    torch.testing.assert_close(factorise(twice, metric, rank=3).read()[:, :, :SIZE], made.read())
    assert not torch.allclose(made.read(), plain.read(), atol=1e-3)
    weights[:] = 0
    weights[:, :, :3] = 1e-3
    made = factorise(keys, metric, rank=3, weights=weights)
    torch.testing.assert_close(made.read()[:, :, :3], keys[:, :, :3])
    # entries without weight are stored all the same, as well as the directions of the others can
    assert (made.coefficients[:, :, 3:].abs().sum(-1) > 0).all()


def test_small_blocks_make_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, _ = batch()
    weights = torch.rand(ROWS, HEADS, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    valid = torch.rand(ROWS, SIZE, generator=torch.Generator().manual_seed(4)) < 0.7
    want = factorise(keys, rank=3, weights=weights, valid=valid)
    monkeypatch.setattr(low_rank, "_BLOCK", 7 * ROWS * HEADS * WIDTH)
    torch.testing.assert_close(factorise(keys, rank=3, weights=weights, valid=valid).read(), want.read())


def test_projection() -> None:
    keys, queries = batch()
    metric = query_metric(queries)
    made = factorise(keys, metric, rank=3)
    g = torch.Generator().manual_seed(7)
    inner = torch.randn(ROWS, HEADS, 6, 3, generator=g, dtype=torch.float64)
    coefficients, missed = made.project(inner @ made.basis)
    torch.testing.assert_close(coefficients, inner)
    assert (missed < 1e-20).all()
    # its own entries get their own coefficients again, and what they miss is the tail
    again, missed = made.project(keys, metric=metric)
    torch.testing.assert_close(again, made.coefficients)
    torch.testing.assert_close(missed, made.spectrum[..., 3:].sum(-1) / made.spectrum.sum(-1))
    new = torch.randn(ROWS, HEADS, 6, WIDTH, generator=g, dtype=torch.float64)
    coefficients, missed = made.project(new, metric=metric)
    off = new - coefficients @ made.basis
    by_hand = torch.einsum("bhpi,bhij,bhpj->bh", off, metric, off) / torch.einsum(
        "bhpi,bhij,bhpj->bh", new, metric, new
    )
    torch.testing.assert_close(missed, by_hand)
    assert (missed < 1).all() and (missed > 0.001).all()
    torch.testing.assert_close(made.project(new)[1], off.square().sum((2, 3)) / new.square().sum((2, 3)))
    # nothing does better in the metric on this basis
    for _ in range(3):
        worse = off - 0.1 * torch.randn(coefficients.shape, generator=g, dtype=torch.float64) @ made.basis
        assert (torch.einsum("bhpi,bhij,bhpj->bh", worse, metric, worse) > (off @ metric * off).sum((2, 3))).all()


def test_degenerate_entries() -> None:
    _, queries = batch(dtype=torch.float32)
    metric = query_metric(queries)
    few = torch.randn(ROWS, HEADS, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    equal = few[:, :, :1].expand(-1, -1, 20, -1)
    zero = torch.zeros(ROWS, HEADS, 5, WIDTH)
    some = torch.cat([few, zero], 2)
    for x, rank in ((few, 2), (equal, 1), (zero, 0), (some, 2), (zero[:, :, :0], 0)):
        for made in (factorise(x, metric, rank=5), factorise(x, rank=5), factorise(x, metric, energy=1.0)):
            assert (made.rank == rank).all() and made.coefficients.shape == (*x.shape[:3], rank)
            torch.testing.assert_close(made.read(), x, atol=1e-4, rtol=0)
            coefficients, missed = made.project(torch.ones(ROWS, HEADS, 3, WIDTH))
            assert coefficients.isfinite().all() and missed.isfinite().all()
            if rank == 0:
                torch.testing.assert_close(missed, torch.ones(ROWS, HEADS))
    nothing = factorise(few, torch.zeros_like(metric), rank=1)
    plain = factorise(few, rank=1)
    torch.testing.assert_close(nothing.read(), plain.read())
    torch.testing.assert_close(nothing.coefficients.abs(), plain.coefficients.abs())
    # a metric that sees one direction only
    narrow = torch.zeros_like(metric)
    narrow[..., 0, 0] = 1
    made = factorise(few, narrow, rank=1)
    assert made.read().isfinite().all()
    torch.testing.assert_close(made.read()[..., 0], few[..., 0], atol=1e-4, rtol=0)


def test_memory() -> None:
    keys, _ = batch()
    made = factorise(keys, rank=3)
    assert made.encoder is not None
    held = made.coefficients.numel() + made.basis.numel()
    assert made.without_encoder().stored_numbers * ROWS * HEADS == held
    assert made.stored_numbers * ROWS * HEADS == held + made.encoder.numel()
    assert stored_numbers(1000, 128, 16, tail=32) == 16 * 1128 + 32 * 128


def test_wrong_choices_are_refused() -> None:
    keys, _ = batch()
    for given in ({}, {"rank": 3, "energy": 0.5}, {"rank": 0}, {"rank": True}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(ConfigError, match=r"rank|energy"):
            factorise(keys, **given)  # type: ignore[arg-type]
    negative = -torch.eye(WIDTH).expand(ROWS, HEADS, -1, -1).clone()
    negative[..., 0, 0] = 100
    with pytest.raises(InputError, match="negative direction"):
        factorise(keys, negative, rank=2)
    with pytest.raises(ConfigError, match="without encoder"):
        factorise(keys, rank=2).without_encoder().project(keys)
