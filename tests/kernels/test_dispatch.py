"""Which form of an operation runs, what is said when one cannot, and what torch knows of a registered kernel."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.toy_kernel import double_kernel
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.kernels import dispatch, prefer, triton_here, why_not
from vlm_eff.kernels.dispatch import Forms, tensors_in
from vlm_eff.kernels.register import register
from vlm_eff.kernels.tiles import Tiles, find


def _launch(source: Tensor, twice: bool = True) -> Tensor:
    target = torch.empty_like(source)
    double_kernel[(-(-source.numel() // 64),)](source, target, source.numel(), BLOCK=64)
    return target


LAUNCHED = register(
    "toy_double",
    _launch,
    fake=lambda source, twice=True: torch.empty_like(source),
    flops=lambda source, twice=True, out_shape=None: 3 * source[0],
)


def too_long(source: Tensor) -> str | None:
    return "more than 100 numbers" if source.numel() > 100 else None


FORMS = Forms(
    "double",
    reference=lambda source: source + source,
    torch=lambda source: source * 2,
    triton=LAUNCHED,
    more={"other": lambda source: source * 3},
    limits={"triton": too_long},
)


def double(source: Tensor, *, backend: str = "auto") -> Tensor:
    return FORMS.run(backend, source)  # type: ignore[no-any-return]


def test_every_form_runs(poisoned: None) -> None:
    source = torch.randn(70)
    for backend in ("auto", "reference", "torch", "triton"):
        assert torch.equal(double(source, backend=backend), source * 2)
    assert torch.equal(double(source, backend="other"), source * 3)


def test_a_processor_takes_torch() -> None:
    assert FORMS.automatic(torch.randn(4)) == "torch"
    assert why_not(double, torch.randn(4)) is None


def test_what_speaks_against_a_form_is_said() -> None:
    with pytest.raises(CapabilityError, match="more than 100 numbers"):
        double(torch.randn(101), backend="triton")
    with pytest.raises(CapabilityError, match="bfloat16 wrongly"):
        double(torch.randn(4).bfloat16(), backend="triton")
    with pytest.raises(CapabilityError, match="no backward"):
        double(torch.randn(4, requires_grad=True), backend="triton")
    with pytest.raises(ConfigError, match=r"auto, reference, torch, triton, other"):
        double(torch.randn(4), backend="cuda")
    with pytest.raises(ConfigError, match="no operation"):
        why_not(torch.add)


def test_without_the_interpreter_a_processor_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_here, "interpreting", lambda: False)
    assert "needs a CUDA device" in (why_not(double, torch.randn(4)) or "")
    monkeypatch.setattr(triton_here, "installed", lambda: False)
    assert "pip install" in (why_not(double, torch.randn(4)) or "")


def test_auto_on_a_gpu_says_once_why_it_does_without_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(torch.Tensor):
        is_cuda = True

    near, far = torch.randn(4), torch.randn(200)
    monkeypatch.setattr(dispatch, "tensors_in", lambda value: iter([t.as_subclass(Remote) for t in value[0]]))
    monkeypatch.setattr(dispatch, "why_no_kernel", lambda tensors: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FORMS.automatic(near) == "triton"
    with pytest.warns(UserWarning, match="double runs without its kernel: more than 100 numbers"):
        assert FORMS.automatic(far) == "torch"


def test_a_preferred_form_is_what_auto_means() -> None:
    source = torch.randn(5)
    with prefer("other"):
        assert torch.equal(double(source), source * 3)
        assert torch.equal(double(source, backend="torch"), source * 2)
    assert torch.equal(double(source), source * 2)
    with pytest.raises(ConfigError, match="backend='nothing'"), prefer("nothing"):
        pass


def test_torch_knows_the_kernel() -> None:
    source = torch.randn(70)
    torch.library.opcheck(LAUNCHED, (source,), test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(lambda x: double(x, backend="triton") + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(source), source * 2 + 1)
    with FlopCounterMode(display=False) as counter:
        double(source, backend="triton")
    assert counter.get_total_flops() == 210


def test_automatic_choice_goes_through_compile() -> None:
    compiled = torch.compile(lambda x: double(x) + 1, fullgraph=True, backend="aot_eager")
    source = torch.randn(7)
    assert torch.equal(compiled(source), source * 2 + 1)


def test_tensors_are_found_wherever_they_are() -> None:
    first, second, third = (torch.zeros(1) for _ in range(3))
    found = list(tensors_in(((first, [second], None), {"x": {"y": third}})))
    assert [id(t) for t in found] == [id(first), id(second), id(third)]


def test_tiles_are_those_of_the_next_width() -> None:
    small, large, old = Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(32, 32, 4, 2)
    table = {(90, 64, 2): small, (90, 128, 2): large, (86, 128, 2): old}
    assert find(table, 90, 72, 2) == large
    assert find(table, 90, 64, 2) == small
    assert find(table, 100, 64, 2) == old
    assert find(table, 90, 256, 2) is None
    assert find(table, 90, 64, 4) is None
