"""What is quantised is read back as the definition says, and as near as it says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_eff.core.config import from_dict, to_dict
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.kernels.format import Format, effective_bits
from vlm_eff.kernels.pack import unpack
from vlm_eff.kernels.quantise import quantise

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FORMATS = [
    Format(bits, axis, group, separable)
    for bits in (1, 2, 4, 8)
    for axis, separable in (("token", False), ("token", True), ("channel", False))
    for group in (None, 1, 5, 8, 1000)
]


def entries(seed: int = 0, shape: tuple[int, ...] = (2, 3, 19, 12)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(x: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction [P, Dh] of one head in float64, group by group as the definition is written."""
    root = x.abs().amax(0).sqrt() if format.separable else torch.ones(x.shape[1], dtype=x.dtype)
    work = x / torch.where(root > 0, root, 1.0)
    work = work if format.axis == "token" else work.T
    codes, made = torch.zeros_like(work), torch.zeros_like(work)
    size = format.group or work.shape[1]
    for line in range(work.shape[0]):
        for start in range(0, work.shape[1], size):
            numbers = work[line, start : start + size]
            low, high = numbers.min(), numbers.max()
            step = (high - low) / (2**format.bits - 1) or 1.0
            code = ((numbers - low) / step).round().clip(0, 2**format.bits - 1)
            codes[line, start : start + size], made[line, start : start + size] = code, code * step + low
    if format.axis == "token":
        return codes, made * root
    return codes.T, made.T


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_it_is_the_definition(format: Format) -> None:
    x = entries()
    stored = quantise(x, format)
    codes = unpack(stored.codes, format.bits, 12 if format.axis == "token" else 19)
    codes = codes if format.axis == "token" else codes.transpose(2, 3)
    for row in range(2):
        for head in range(3):
            wanted, made = brute(x[row, head], format)
            assert torch.equal(codes[row, head].double(), wanted)
            torch.testing.assert_close(stored.read(torch.float64)[row, head], made, rtol=1e-6, atol=1e-6)


def test_the_fixture_of_kivi() -> None:
    """Two bits of .0 .1 .4 1 -.5 .2 .3 .7: lowest -.5, step .5, packed low half-word 0xA4E5."""
    x = torch.tensor([0, 0.1, 0.4, 1, -0.5, 0.2, 0.3, 0.7])[None, None, None]
    for stored in (quantise(x, Format(2, "token", 8)), quantise(x.transpose(2, 3), Format(2, "channel", 8))):
        assert stored.lowest.item() == -0.5 and stored.scale.item() == 0.5
        assert stored.codes.flatten().tolist() == [0xE5, 0xA4]
        assert stored.read(torch.float32).flatten().tolist() == [0, 0, 0.5, 1, -0.5, 0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("offset", [0.0, -12.0])
def test_no_number_is_off_by_more_than_half_a_stored_step(format: Format, dtype: torch.dtype, offset: float) -> None:
    x = (entries(1) + offset).to(dtype)
    stored = quantise(x, format)
    lines = stored.scale.float().repeat_interleave(format.size(12 if format.axis == "token" else 19), -1)
    half = lines[..., :12] / 2 if format.axis == "token" else lines[..., :19].transpose(2, 3) / 2
    if stored.channel is not None:
        half = half * stored.channel.float()
    error = (stored.read(torch.float64) - x.double()).abs()
    assert (error <= half.double() * (1 + 1e-4) + 1e-5).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_numbers_on_the_grid_come_back_exactly(bits: int, axis: Any, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 2**bits, (2, 2, 16, 16), generator=torch.Generator().manual_seed(bits))
    codes[..., :1, :], codes[..., 1:2, :] = 0, 2**bits - 1
    codes[..., :1], codes[..., 1:2] = 0, 2**bits - 1
    x = (codes * 0.25 - 8).to(dtype)
    made = quantise(x, Format(bits, axis)).read(dtype)
    assert made.dtype == dtype
    assert torch.equal(made, x)


@pytest.mark.parametrize("format", [format for format in FORMATS if not format.separable], ids=str)
def test_quantising_again_changes_nothing(format: Format) -> None:
    """With the same members a group keeps its lowest and highest number; the divisors of channels may change."""
    first = quantise(entries(2), format)
    again = quantise(first.read(torch.float64), format)
    assert torch.equal(first.codes, again.codes)
    torch.testing.assert_close(first.read(torch.float64), again.read(torch.float64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_equal_numbers_and_single_numbers_are_exact(axis: Any, dtype: torch.dtype) -> None:
    for value in (0.0, 3.140625, -700.0, 1e-4):
        x = torch.full((1, 2, 3, 5), value, dtype=dtype)
        for group in (None, 1, 2):
            stored = quantise(x, Format(2, axis, group))
            # statistics are float32
            assert torch.equal(stored.read(dtype), x.float().to(dtype))
            assert (stored.scale == 1).all()
    single = entries(3, (1, 1, 7, 5)).to(dtype)
    assert torch.equal(quantise(single, Format(1, axis, 1)).read(dtype), single.float().to(dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "format", [Format(2, "token", 4), Format(2, "token", 4, True), Format(2, "channel", 4)], ids=str
)
def test_what_is_not_finite_spoils_its_own_group_alone(format: Format, bad: float) -> None:
    clean = entries(4, (2, 2, 8, 8))
    x = clean.clone()
    # the number is not its channel's largest, so that the divisor of the channel stays
    clean[0, 1, 2, 5] = x[0, 1, 2, 5] = 0.0
    x[0, 1, 2, 5] = bad
    made, wanted = quantise(x, format).read(torch.float64), quantise(clean, format).read(torch.float64)
    group = (slice(2, 3), slice(4, 8)) if format.axis == "token" else (slice(0, 4), slice(5, 6))
    assert made[0, 1][group].isnan().all()
    rest = torch.ones_like(made, dtype=torch.bool)
    rest[0, 1][group] = False
    assert torch.equal(made[rest], wanted[rest])


@pytest.mark.parametrize("outliers", [0.0, 0.2])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_row_is_stored_as_it_would_be_alone(format: Format, outliers: float) -> None:
    """Fillers before, between and behind, full of what must not be seen; other rows are other data."""
    format = Format(format.bits, format.axis, format.group, format.separable, outliers=outliers)
    alone = entries(5, (1, 1, 11, 12))
    places = torch.tensor([2, 3, 4, 6, 7, 8, 11, 12, 13, 14, 15])
    x = torch.full((3, 2, 18, 12), torch.nan, dtype=torch.float64)
    x[0], x[2] = 1e30, entries(6, (2, 18, 12)) * 100
    valid = torch.zeros(3, 2, 18, dtype=torch.bool)
    valid[2], valid[1, 0], valid[1, 1, 3:9] = True, True, True
    x[1, 0] = 7.0
    valid[1, 0] = False
    x[1, 1, places], valid[1, 1] = alone[0, 0], False
    valid[1, 1, places] = True
    made = quantise(x, format, valid).read(torch.float64)
    assert made.isfinite().all()
    assert torch.equal(made[1, 1, places], quantise(alone, format).read(torch.float64)[0, 0])
    assert torch.equal(made[2], quantise(x[2:], format).read(torch.float64)[0])


@pytest.mark.parametrize("outliers", [0.0, 0.2])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_fillers_leave_no_trace(format: Format, outliers: float) -> None:
    format = Format(format.bits, format.axis, format.group, format.separable, outliers=outliers)
    x, valid = entries(10), torch.rand(2, 3, 19, generator=torch.Generator().manual_seed(10)) > 0.4
    stored = [quantise(x.masked_fill(~valid[..., None], fill), format, valid) for fill in (1e4, -3.0, torch.nan)]
    for other in stored[1:]:
        for known, buffer in zip(stored[0].buffers(), other.buffers(), strict=True):
            assert torch.equal(known, buffer)


def test_the_largest_half_numbers_do_not_become_infinite() -> None:
    x = torch.tensor([65504.0, -65504, 0, 1000]).half()[None, None, None]
    for bits in (1, 2, 4, 8):
        made = quantise(x, Format(bits, "token")).read(torch.float16)
        assert made.isfinite().all()
        assert made[..., :2].tolist() == x[..., :2].tolist()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_channel_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    x = entries(11).abs().to(dtype)
    x[..., 4] = 0
    made = quantise(x, Format(4, "token", separable=True)).read(dtype)
    assert made.isfinite().all() and (made[..., 4] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_eight_bits_keep_a_lowest_number_that_is_none_of_the_numbers_in_float32(dtype: torch.dtype) -> None:
    """A half type would widen a narrow range far from 0 by more than a step."""
    x = (entries(12) * 0.1 - 12).to(dtype)
    stored = quantise(x, Format(8, "token", separable=True))
    divided = x.float() / (stored.channel if stored.channel is not None else x).float()
    step = (divided.amax(-1) - divided.amin(-1)) / 255
    assert (stored.scale[..., 0].float() <= step * (1 + 2**-7)).all()
    assert stored.lowest.dtype == torch.float32
    assert quantise(x, Format(4, "token", separable=True)).lowest.dtype == dtype
    assert quantise(x, Format(8, "token")).lowest.dtype == dtype


def test_rows_can_be_chosen_and_repeated() -> None:
    x, valid = entries(7), torch.rand(2, 3, 19, generator=torch.Generator().manual_seed(7)) > 0.3
    for format in (Format(2, "channel", 4, outliers=0.1), Format(4, "token", None, True)):
        stored = quantise(x, format, valid)
        rows = torch.tensor([1, 1, 0])
        chosen = stored.select(rows)
        assert torch.equal(chosen.read(torch.float32), stored.read(torch.float32)[rows])
        assert [len(buffer) for buffer in chosen.buffers()] == [3] * len(stored.buffers())
        assert chosen.bytes * 2 == stored.bytes * 3


@pytest.mark.parametrize("count", [0, 1])
def test_no_entry_and_one_entry(count: int) -> None:
    for format in FORMATS:
        stored = quantise(entries(8, (2, 3, count, 12)), format)
        assert stored.read(torch.float32).shape == (2, 3, count, 12)
        assert stored.count == count


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("fillers", [False, True])
def test_the_closed_form_is_what_is_stored(dtype: torch.dtype, outliers: float, fillers: bool) -> None:
    x = entries(9).to(dtype)
    valid = torch.ones(2, 3, 19, dtype=torch.bool)
    if fillers:
        valid[:, :, 3] = False
    for shape in FORMATS:
        format = Format(shape.bits, shape.axis, shape.group, shape.separable, outliers=outliers)
        stored = quantise(x, format, valid)
        held = sum(buffer.untyped_storage().nbytes() for buffer in stored.buffers())
        assert stored.bytes == held
        assert 8 * held / x.numel() == pytest.approx(effective_bits(format, 19, 12, dtype, fillers))


@pytest.mark.parametrize(
    ("format", "count", "width", "bits"),
    [
        (Format(2, "channel", 32), 64, 128, 3.0),  # KIVI, groups of 32
        (Format(2, "token", 128), 64, 128, 2.25),  # KIVI, groups of 128
        (Format(4, "channel", 32), 64, 128, 5.0),
        (Format(4, "token", 64), 64, 128, 4.5),  # HF backends
        (Format(2, "token", 64), 64, 128, 2.5),
        (Format(1, "channel", shrink=0.5), 576, 128, 1 + 32 / 576),  # CalibQuant over 576 visual tokens
        (Format(8, "token"), 64, 128, 8.25),  # a scale and a zero for each token and head
        (Format(4, "token", separable=True), 1000, 128, 4.25 + 16 / 1000),  # ZipCache, a head at a time
    ],
    ids=str,
)
def test_effective_bits_of_published_schemes(format: Format, count: int, width: int, bits: float) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert effective_bits(format, count, width, dtype) == pytest.approx(bits)
        stored = quantise(torch.randn(1, 1, count, width).to(dtype), format)
        assert 8 * stored.bytes / (count * width) == pytest.approx(bits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 3},
        {"bits": True},
        {"axis": "row"},
        {"group": 0},
        {"group": 2.0},
        {"group": True},
        {"separable": 1},
        {"separable": True, "axis": "channel"},
        {"shrink": 0},
        {"shrink": 1.5},
        {"shrink": "half"},
        {"outliers": 1.0},
        {"outliers": -0.1},
        {"outliers": torch.nan},
    ],
    ids=str,
)
def test_what_is_no_format_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        Format(**({"bits": 4, "axis": "token"} | wrong))


def test_a_format_survives_a_dict() -> None:
    format = Format(2, "channel", 32, shrink=0.5, outliers=0.01)
    assert from_dict(to_dict(format)) == format
    with pytest.raises(ConfigError, match="Accepted: "):
        from_dict(to_dict(format) | {"bits": 5})


def test_what_is_no_entries_is_refused() -> None:
    with pytest.raises(InputError, match="Accepted: floating numbers"):
        quantise(torch.zeros(2, 3, 4), Format(2, "token"))
    with pytest.raises(InputError, match="Accepted: bool"):
        quantise(entries(), Format(2, "token"), torch.ones(2, 19, dtype=torch.bool))
