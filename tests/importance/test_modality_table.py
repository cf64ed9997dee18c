"""A table of factors on logits equals scaled keys, leaves ones alone, and can be learned."""

import pytest
import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.modality_table import key_factors, modality_table, scale_logits

ROWS, HEADS, GROUP, SIZE, WIDTH = 2, 2, 3, 9, 4
ALPHA = torch.tensor([[1.0, 0.5, 2.0], [0.3, 1.1, 0.7], [0.0, -0.4, 1.0]], dtype=torch.float64)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries [2, 6, 5, 4], keys and values [2, 2, 9, 4], modality of queries [2, 5] and of keys [2, 9]."""
    g = torch.Generator().manual_seed(0)
    queries = torch.randn(ROWS, HEADS * GROUP, 5, WIDTH, generator=g, dtype=torch.float64)
    keys, values = torch.randn(2, ROWS, HEADS, SIZE, WIDTH, generator=g, dtype=torch.float64)
    asks = torch.randint(0, 3, (ROWS, 5), generator=g, dtype=torch.int8)
    holds = torch.randint(0, 3, (ROWS, SIZE), generator=g, dtype=torch.int8)
    return queries, keys, values, asks, holds


def logits_of(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.repeat_interleave(GROUP, 1).mT


def scale_keys(keys: Tensor, line: Tensor, modality: Tensor) -> Tensor:
    """Keys as queries of one modality see them."""
    factors = key_factors(line, modality)
    return keys * (factors[:, None] if modality.ndim == 2 else factors)[..., None]


def attend(logits: Tensor, values: Tensor) -> Tensor:
    return logits.softmax(-1) @ values.repeat_interleave(GROUP, 1)


def test_factors_are_those_of_the_table() -> None:
    queries, keys, _, asks, holds = batch()
    holds[0, 0], asks[1, 2] = -1, -1
    plain = logits_of(queries, keys)
    made = scale_logits(plain, ALPHA, asks, holds)
    for b in range(ROWS):
        for q in range(5):
            for j in range(SIZE):
                there = asks[b, q] >= 0 and holds[b, j] >= 0
                factor = ALPHA[asks[b, q], holds[b, j]] if there else 1.0
                torch.testing.assert_close(made[b, :, q, j], plain[b, :, q, j] * factor, atol=1e-15, rtol=0)
            if asks[b, q] >= 0:
                row = key_factors(ALPHA[asks[b, q].long()], holds)[b]
                torch.testing.assert_close(made[b, :, q], plain[b, :, q] * row, atol=1e-15, rtol=0)


@pytest.mark.parametrize("per_head", [False, True])
def test_on_logits_and_on_keys_it_is_the_same_attention(per_head: bool) -> None:
    queries, keys, values, asks, holds = batch()
    if per_head:
        holds = torch.stack([holds, holds.flip(1)], 1)
    want = attend(scale_logits(logits_of(queries, keys), ALPHA, asks, holds), values)
    made = torch.zeros_like(want)
    for modality in range(3):
        seen = attend(logits_of(queries, scale_keys(keys, ALPHA[modality], holds)), values)
        made = torch.where((asks == modality)[:, None, :, None], seen, made)
    torch.testing.assert_close(made, want, atol=2e-15, rtol=0)
    assert (want - attend(logits_of(queries, keys), values)).abs().max() > 0.1


def test_each_row_of_a_batch_may_ask_with_its_own_line() -> None:
    _, keys, _, _, holds = batch()
    made = scale_keys(keys, ALPHA[[2, 0]], holds)
    assert torch.equal(made[0], scale_keys(keys, ALPHA[2], holds)[0])
    assert torch.equal(made[1], scale_keys(keys, ALPHA[0], holds)[1])
    assert not torch.equal(made[1], scale_keys(keys, ALPHA[2], holds)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ones_change_no_bit(dtype: torch.dtype) -> None:
    queries, keys, _, asks, holds = batch()
    ones = modality_table([[1.0] * 3] * 3)
    keys, logits = keys.to(dtype), logits_of(queries, keys).to(dtype)
    logits[..., 4] = -torch.inf
    made = scale_logits(logits, ones, asks, holds)
    assert made.dtype == dtype and torch.equal(made, logits)
    assert torch.equal(key_factors(ones[0], holds), torch.ones(holds.shape))
    assert not torch.equal(scale_logits(logits, 2 * ones, asks, holds), logits)


def test_zero_is_uniform_and_no_mask_and_a_mask_stays_one() -> None:
    queries, keys, _, asks, holds = batch()
    logits = logits_of(queries, keys)
    logits[..., :2] = -torch.inf
    made = scale_logits(logits, torch.zeros(3, 3, dtype=torch.float64), asks, holds).softmax(-1)
    torch.testing.assert_close(made, torch.tensor([0.0] * 2 + [1 / 7] * 7, dtype=torch.float64).expand_as(made))
    alpha = torch.ones(3, 3, dtype=torch.float64)
    alpha[:, 1] = 0
    made = scale_logits(logits, alpha, asks, holds)
    pair = (holds == 1)[:, None, None].expand_as(made) & (logits != -torch.inf)
    assert pair.any() and (made[pair] == 0).all() and (made.softmax(-1)[pair] > 0).all()
    assert torch.equal(made[~pair], logits[~pair])


def test_the_table_can_be_learned() -> None:
    queries, keys, values, asks, holds = batch()
    logits = logits_of(queries, keys)
    logits[..., 0] = -torch.inf

    def on_logits(alpha: Tensor) -> Tensor:
        return attend(scale_logits(logits, alpha, asks, holds), values)

    def on_keys(alpha: Tensor) -> Tensor:
        return attend(logits_of(queries, scale_keys(keys, alpha[1], holds)), values)

    alpha = ALPHA.clone().requires_grad_()
    assert modality_table(alpha) is alpha
    for function in (on_logits, on_keys):
        # against finite differences
        assert torch.autograd.gradcheck(function, (alpha,))
        (gradient,) = torch.autograd.grad(function(alpha).square().sum(), alpha)
        assert gradient.isfinite().all() and (gradient[1] != 0).all()


@pytest.mark.parametrize(
    "alpha", [[[1.0, 2.0]], [], [[]], [1.0], [[float("nan")]], [[float("inf")]], [[1.0], [1.0, 2.0]], "no", [["a"]]]
)
def test_other_tables_are_refused(alpha: object) -> None:
    with pytest.raises(ConfigError, match="square table"):
        modality_table(alpha)  # type: ignore[arg-type]


def test_tables_of_whole_numbers_are_taken_and_tensors_of_them_refused() -> None:
    assert modality_table([[1, 0], [0, 1]]).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ConfigError, match="square table"):
        modality_table(torch.ones(2, 2, dtype=torch.long))
