"""What the papers say of their forms holds for ours: which axis suits which data, and why nothing is quantised anew."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.quantise import Quantised, quantise


def keys(seed: int = 0, count: int = 128, width: int = 32) -> Tensor:
    """Keys with a few channels of constant offset, as models have them [1, 2, count, width]."""
    x = torch.randn(1, 2, count, width, generator=torch.Generator().manual_seed(seed))
    x[..., ::8] += 12 * torch.tensor([1.0, -1, 1.5, -0.8])
    return x


def error(x: Tensor, stored: Quantised) -> float:
    return float((stored.read(torch.float32) - x).square().mean().sqrt())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_keys_want_groups_of_channels(bits: Any) -> None:
    """KIVI: with outlier channels the error of channel groups is far below that of token groups of the same size."""
    x = keys()
    by_channel, by_token = (error(x, quantise(x, Format(bits, axis, 32))) for axis in ("channel", "token"))
    assert by_channel < by_token / 3
    # without them there is not much between the two
    plain = torch.randn(1, 2, 128, 32, generator=torch.Generator().manual_seed(1))
    by_channel, by_token = (error(plain, quantise(plain, Format(bits, axis, 32))) for axis in ("channel", "token"))
    assert by_channel == pytest.approx(by_token, rel=0.1)


@pytest.mark.parametrize(
    ("format", "chunk"), [(Format(2, "channel", 32), 32), (Format(2, "channel", 32), 64), (Format(4, "token", 8), 1)]
)
def test_what_is_quantised_in_pieces_equals_what_is_quantised_at_once(format: Format, chunk: int) -> None:
    x = keys(2)
    whole = quantise(x, format)
    pieces = [quantise(x[:, :, at : at + chunk], format) for at in range(0, 128, chunk)]
    joined = torch.cat([piece.read(torch.float32) for piece in pieces], 2)
    assert torch.equal(joined, whole.read(torch.float32))
    axis = 3 if format.axis == "channel" else 2
    assert torch.equal(torch.cat([piece.codes for piece in pieces], axis), whole.codes)
    assert torch.equal(torch.cat([piece.scale for piece in pieces], axis), whole.scale)
    assert sum(piece.bytes for piece in pieces) == whole.bytes


def test_pieces_that_cut_a_group_are_other_groups() -> None:
    x = keys(2)
    pieces = torch.cat([quantise(part, Format(2, "channel", 32)).read(torch.float32) for part in x.split(48, 2)], 2)
    assert not torch.equal(pieces, quantise(x, Format(2, "channel", 32)).read(torch.float32))


def test_quantising_again_as_entries_come_drifts_and_appending_does_not() -> None:
    """A whole channel quantised anew whenever entries come loses more each time; groups that stay do not."""
    x = keys(3, 256) * torch.linspace(0.5, 4, 256)[:, None]
    again, appended, whole = x[:, :, :0], [], Format(4, "channel")
    for at in range(0, 256, 8):
        again = quantise(torch.cat([again, x[:, :, at : at + 8]], 2), whole).read(torch.float32)
        appended.append(quantise(x[:, :, at : at + 8], whole))
    kept = torch.cat([piece.read(torch.float32) for piece in appended], 2)
    once = error(x, quantise(x, whole))
    assert float((again - x).square().mean().sqrt()) > 1.2 * once
    assert float((kept - x).square().mean().sqrt()) < once


def test_demotion_is_bounded_by_half_a_step_of_each() -> None:
    x = keys(4)
    first = quantise(x, Format(4, "channel", 32))
    second = quantise(first.read(torch.float32), Format(2, "channel", 32))
    bound = (first.scale + second.scale).repeat_interleave(32, -1).transpose(2, 3) / 2
    assert ((second.read(torch.float32) - x).abs() <= bound + 1e-5).all()


def test_channel_separable_equals_plain_where_all_channels_are_alike() -> None:
    """ZipCache: with all divisors 1 it is token-wise quantisation."""
    x = torch.rand(1, 2, 16, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    x[:, :, 3] = 1.0
    plain, separable = (quantise(x, Format(4, "token", None, each)) for each in (False, True))
    assert separable.channel is not None and (separable.channel == 1).all()
    assert torch.equal(separable.read(torch.float32), plain.read(torch.float32))
    assert torch.equal(separable.codes, plain.codes)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_channel_separable_is_nearer_where_channels_stand_out(seed: int, bits: Any) -> None:
    x = torch.randn(1, 2, 64, 32, generator=torch.Generator().manual_seed(seed))
    x[..., [3, 17]] *= 25
    plain, separable = (error(x, quantise(x, Format(bits, "token", None, each))) for each in (False, True))
    assert separable < plain


def test_a_smaller_range_suits_one_bit() -> None:
    """CalibQuant: two levels at the ends of the range are far from most numbers; half-way in they are near."""
    x = torch.randn(1, 2, 256, 16, generator=torch.Generator().manual_seed(6))
    by_factor = {shrink: error(x, quantise(x, Format(1, "channel", shrink=shrink))) for shrink in (0.3, 0.5, 1.0)}
    assert by_factor[0.3] < by_factor[0.5] < by_factor[1.0] / 1.4
    stored = quantise(torch.tensor([0.0, 1, 2, 9, 10])[None, None, :, None], Format(1, "channel", shrink=0.5))
    assert stored.read(torch.float32).flatten().tolist() == [2.5, 2.5, 2.5, 7.5, 7.5]


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_outliers_are_exact_and_help_the_others(axis: Any, dtype: torch.dtype) -> None:
    x = torch.randn(2, 2, 40, 40, generator=torch.Generator().manual_seed(7)).to(dtype)
    far = torch.zeros_like(x, dtype=torch.bool)
    # one in each group of 20 along either axis
    for at in range(20):
        far[:, :, at::20, at::20] = torch.eye(2, dtype=torch.bool)
        far[:, :, at, at + 20] = far[:, :, at + 20, at] = True
    x[far] = (60 + x[far]) * x[far].sign()
    plain, dense = (quantise(x, Format(2, axis, 20, outliers=share)) for share in (0.0, 0.05))
    made = dense.read(dtype)
    assert torch.equal(made[far], x[far])
    assert (made - x)[~far].abs().max() < 1.5
    assert (plain.read(dtype) - x)[~far].abs().max() > 5


def test_outliers_are_those_far_from_the_median_and_rounded_up() -> None:
    x = torch.tensor([5.0, 6, 7, 8, -90, 9, 100, 10])[None, None, None]
    stored = quantise(x, Format(1, "token", outliers=0.2))
    assert stored.place is not None and stored.exact is not None
    assert sorted(stored.place.flatten().tolist()) == [4, 6]
    assert stored.read(torch.float32).flatten().tolist() == [5, 5, 5, 10, -90, 10, 100, 10]
