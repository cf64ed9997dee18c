"""All forms of quantising give the same bits: the definition, the fast form of PyTorch and the kernels."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import fresh, normal
from vlm_eff.core.errors import CapabilityError
from vlm_eff.kernels import triton_here, why_not
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.quantise import Quantised, launch, quantise
from vlm_eff.kernels.quantise.rounding import rounded

SMALL, ODD, LONG = (2, 3, 19, 12), (1, 2, 150, 72), (1, 2, 300, 64)
# every way through the kernels: bits, groups that fill their tile or not, one group, a last group that is shorter,
# groups of a channel that one program holds or several do
CASES = [
    (Format(2, "channel", 32), LONG), (Format(4, "channel", 64), ODD), (Format(2, "channel"), SMALL),
    (Format(1, "channel", 8, shrink=0.5), SMALL), (Format(8, "channel", 5), SMALL), (Format(4, "channel", 200), LONG),
    (Format(2, "channel", None, shrink=0.3), (1, 1, 577, 16)), (Format(2, "channel", 100), ODD),
    (Format(2, "token", 32), LONG), (Format(4, "token", None), ODD), (Format(4, "token", None, True), LONG),
    (Format(8, "token", None, True), ODD), (Format(1, "token", 8, shrink=0.5), SMALL), (Format(2, "token", 64), ODD),
    (Format(4, "token", None), (2, 1, 33, 128)), (Format(2, "token", 32), (1, 1, 65, 80)),
]  # fmt: skip
TYPES = (torch.float32, torch.float16)


def entries(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int | None = None) -> Tensor:
    return normal(fresh(seed), *shape).mul(3).add(-1).to(dtype)


def some(shape: tuple[int, ...], share: float = 0.6) -> Tensor:
    return torch.rand(shape[:3], generator=fresh()) < share


def apart(one: Quantised, other: Quantised) -> list[str]:
    """Names of what differs in type, shape or value; NaN is NaN."""
    different = []
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            alike = first.dtype == second.dtype and first.shape == second.shape
            if not alike or not torch.allclose(first.double(), second.double(), rtol=0, atol=0, equal_nan=True):
                different.append(field.name)
        elif first != second:
            different.append(field.name)
    return different


def differs(backend: str, format: Format, x: Tensor, valid: Tensor | None = None) -> list[str]:
    """What of a form's result is not the definition's."""
    return apart(quantise(x, format, valid, backend=backend), quantise(x, format, valid, backend="reference"))


@pytest.mark.parametrize("fillers", [False, True])
@pytest.mark.parametrize(("format", "shape"), CASES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_every_form_gives_the_same_bits(
    backend: str, format: Format, shape: tuple[int, ...], fillers: bool, poisoned: None
) -> None:
    kinds = TYPES if backend == "torch" else (TYPES[len(str(format)) % 2],)
    for dtype in kinds:
        x = entries(shape, dtype)
        valid = some(shape) if fillers else None
        assert not differs(backend, format, x, valid)


@pytest.mark.parametrize("dtype", [torch.float64, *TYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_fast_form_gives_the_same_bits_everywhere(bits: Any, axis: Any, dtype: torch.dtype) -> None:
    for group in (None, 1, 5, 8, 32, 1000):
        for separable in {False, axis == "token"}:
            for shrink, outliers in ((1.0, 0.0), (0.3, 0.0), (1.0, 0.1)):
                format = Format(bits, axis, group, separable, shrink, outliers)
                x = entries(SMALL, dtype)
                for valid in (None, some(SMALL), torch.zeros(SMALL[:3], dtype=torch.bool)):
                    assert not differs("torch", format, x, valid), format


@pytest.mark.parametrize(("format", "shape"), [CASES[0], CASES[9]], ids=str)
def test_bfloat16_gives_the_same_bits(format: Format, shape: tuple[int, ...]) -> None:
    """The kernels read and write its bits and never compute in it, so that the interpreter may run them."""
    for shrink in (1.0, 0.3):
        form = Format(format.bits, format.axis, format.group, shrink=shrink)
        x = entries(shape, torch.bfloat16)
        assert not apart(launch.quantise(x, form, None), quantise(x, form, backend="reference"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "format", [Format(4, "token", 8), Format(2, "channel", 8), Format(4, "token", 8, True)], ids=str
)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_what_is_not_finite_and_what_is_all_alike(backend: str, format: Format) -> None:
    for dtype in TYPES:
        x = entries((1, 2, 40, 16), dtype)
        x[0, 0, 1, 3], x[0, 0, 20, 9], x[0, 1, 30, 12] = torch.nan, torch.inf, -torch.inf
        x[0, 1, 8:16, 8:16] = -700.0
        x[0, 1, 16:24, :8], x[0, 0, 32:40, 8:] = 0.0, torch.nan
        assert not differs(backend, format, x)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize(("format", "shape"), [CASES[0], CASES[4], CASES[9], CASES[13]], ids=str)
def test_no_number_is_off_by_more_than_half_a_stored_step(backend: str, format: Format, shape: tuple[int, ...]) -> None:
    for dtype in TYPES:
        x = entries(shape, dtype)
        stored = quantise(x, format, backend=backend)
        length = shape[3] if format.axis == "token" else shape[2]
        half = stored.scale.double().repeat_interleave(format.size(length), -1)[..., :length] / 2
        half = half if format.axis == "token" else half.transpose(2, 3)
        assert ((stored.read(torch.float64) - x.double()).abs() <= half * (1 + 1e-4) + 1e-6).all()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_is_its_rows_and_layout_does_not_matter(backend: str) -> None:
    x, valid = entries((2, 2, 40, 16), torch.float16), some((2, 2, 40))
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    for format in (Format(2, "channel", 16), Format(4, "token", 8)):
        whole = quantise(x, format, valid, backend=backend)
        assert not apart(whole, quantise(turned, format, valid.mT.contiguous().mT, backend=backend))
        for row in range(2):
            rows = torch.tensor([row])
            assert not apart(whole.select(rows), quantise(x[rows], format, valid[rows], backend=backend))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_entry_and_one_entry(backend: str, count: int) -> None:
    for format in (
        Format(2, "channel", 16),
        Format(2, "channel"),
        Format(4, "token", 8),
        Format(4, "token", None, True),
    ):
        assert not differs(backend, format, entries((2, 3, count, 16)))


def test_a_corrected_product_with_the_inverse_is_the_quotient() -> None:
    """What the kernels do on a GPU for steps of 8 bits; the interpreter divides. float64 holds each product exactly."""
    draw = fresh()
    step = rounded(torch.rand(200_000, generator=draw) + 1, torch.bfloat16, up=True).float()
    above = torch.rand(200_000, generator=draw) * 300 * step
    # near the middles between two codes, where one bit of the quotient decides
    above[::2] = (torch.randint(0, 256, (100_000,), generator=draw) + 0.5) * step[::2]
    off = torch.randint(-2, 3, (100_000,), generator=draw)
    above[::2] = (above[::2].view(torch.int32) + off.int()).view(torch.float32)
    inverse = 1 / step
    product = above * inverse
    rest = (above.double() - product.double() * step.double()).float()
    made = (product.double() + rest.double() * inverse.double()).float()
    assert torch.equal(made, above / step)
    assert not torch.equal(product, above / step)


def test_why_a_kernel_cannot() -> None:
    x = torch.zeros(1, 2, 40, 16)
    assert "sorting" in (why_not(quantise, x, Format(2, "token", 8, outliers=0.1), None) or "")
    assert "fill bytes" in (why_not(quantise, x, Format(2, "channel", 5), None) or "")
    assert why_not(quantise, x, Format(8, "channel", 5), None) is None
    assert "float64" in (why_not(quantise, x.double(), Format(2, "token", 8), None) or "")
    assert "stride" in (why_not(quantise, x.mT.contiguous().mT, Format(2, "token", 8), None) or "")
    assert "rows of 1024" in (why_not(quantise, torch.zeros(1, 1, 1, 1024), Format(2, "token", 8), None) or "")
    with pytest.raises(CapabilityError, match="sorting"):
        quantise(x, Format(2, "token", 8, outliers=0.1), backend="triton")


def test_a_processor_takes_the_fast_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_here, "interpreting", lambda: False)
    assert "CUDA" in (why_not(quantise, torch.zeros(1, 2, 40, 16), Format(2, "token", 8), None) or "")


def test_torch_knows_the_kernels() -> None:
    x = entries((1, 2, 40, 16), torch.float16)
    valid = some((1, 2, 40)).contiguous()
    for axis, group, kept in (("token", 8, valid), ("channel", 16, None), ("channel", 0, None)):
        checks = ("test_schema", "test_faketensor")
        opcheck(launch.launched, (x, None, kept, None, 2, axis, group, 1.0), test_utils=checks)
    with FlopCounterMode(display=False) as counted:
        quantise(x, Format(2, "channel", 16), backend="triton")
    assert counted.get_total_flops() == 0


def test_a_compiled_model_may_quantise() -> None:
    x = entries((1, 2, 40, 16))

    def codes(x: Tensor, backend: str) -> Tensor:
        return quantise(x, Format(2, "channel", 16), backend=backend).codes

    for backend in ("torch", "triton"):
        made = torch.compile(codes, fullgraph=True, backend="aot_eager")(x, backend)
        assert torch.equal(made, codes(x, "reference"))


@pytest.mark.parametrize(
    ("name", "value", "case"),
    [
        ("valid_first", lambda valid: torch.arange(valid.shape[2]).expand(valid.shape).contiguous(), 0),
        ("statistics", lambda low, high, *rest: _nearest(low, high, *rest), 6),
        ("_up", lambda number, size: max(number // size, 1), 1),
        ("_or", lambda tensor, other: torch.ones(99999, dtype=torch.uint8), 8),
        ("channel_sizes", lambda x, valid: torch.ones_like(x[:, :, :1]), 10),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_broken_launcher_is_found_out(
    name: str, value: Any, case: int, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    format, shape = CASES[case]
    x, valid = entries(shape, torch.float16, seed=3), some(shape)
    assert not differs("triton", format, x, valid)
    monkeypatch.setattr(launch, name, value)
    assert differs("triton", format, x, valid)


def _nearest(
    low: Tensor, high: Tensor, format: Format, types: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Tensor]:
    """Statistics as official codes round them."""
    middle, half = (low + high) / 2, (high - low) / 2 * format.shrink
    return (2 * half / format.highest).to(types[0]), (middle - half).to(types[1])
