"""Attention among chosen tokens: every form against float64, and every property against something that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import BACKENDS, LSE_TOLERANCE, TOLERANCE, fresh, normal, relative
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.selected_attention import selected_attention

# what the forms must agree with is computed from these in float64
Form = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """Shapes of a call; `fillers` of row b are 7 b + 3, `pads` 11 b + 5 keys in front."""

    batch: int = 1
    heads: int = 2
    shared: int = 2
    rows: int = 150
    older: int = 0
    width: int = 64
    kept: int = 60
    pads: bool = False
    fillers: str = ""
    softcap: float | None = None


CASES = {
    "odd": Case(heads=2, shared=1, rows=300, kept=150),
    "one": Case(kept=1),
    "all": Case(heads=1, shared=1, kept=150, width=128),
    "none": Case(kept=0),
    "cached": Case(older=51, width=128),
    "padded cache": Case(batch=2, heads=2, shared=1, rows=90, older=9, width=80, kept=50, pads=True),
    "padded rows": Case(batch=2, heads=2, shared=1, rows=110, kept=50, width=72, pads=True, fillers="front"),
    "group of seven": Case(heads=7, shared=1, rows=100, width=80, fillers="behind"),
    "capped": Case(batch=2, heads=1, shared=1, rows=140, older=3, width=96, pads=True, fillers="front", softcap=4.0),
    "wide": Case(heads=1, shared=1, rows=70, width=256, kept=40),
    "narrow": Case(rows=70, width=16, kept=40),
}
BOTH = (torch.float32, torch.float16)


def arguments(case: Case, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """A call; queries are laid out as models lay them out, and fillers are nowhere."""
    keys = case.older + case.rows
    query = normal(generator, case.batch, case.rows, case.heads, case.width, dtype=dtype).transpose(1, 2)
    key, value = (normal(generator, case.batch, case.shared, keys, case.width, dtype=dtype) for _ in range(2))
    order = torch.rand(case.batch, case.rows, generator=generator).argsort(1)
    index = order[:, : case.kept].sort(1).values
    valid = None
    if case.fillers:
        count = 7 * torch.arange(case.batch)[:, None] + 3
        place = torch.arange(case.kept)
        valid = place >= count if case.fillers == "front" else place < case.kept - count
        index = index.masked_fill(~valid, -1)
    first = 11 * torch.arange(case.batch) + 5 if case.pads else None
    return {"query": query, "key": key, "value": value, "index": index, "valid": valid, "first": first,
            "softcap": case.softcap}  # fmt: skip


def run(backend: str, **call: Any) -> tuple[Tensor, Tensor]:
    made = selected_attention(**call, return_lse=True, backend=backend)
    assert isinstance(made, tuple)
    return made


def expected(call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    wide = {name: call[name].double() for name in ("query", "key", "value")}
    return run("reference", **call | wide)


def taken(call: dict[str, Any]) -> Tensor:
    """Which tokens are chosen [B, Q]."""
    rows = call["query"].shape[2]
    valid = torch.ones_like(call["index"], dtype=torch.bool) if call["valid"] is None else call["valid"]
    made = torch.zeros(len(valid), rows + 1, dtype=torch.bool)
    made.scatter_(1, call["index"].masked_fill(~valid, rows), True)
    return made[:, :rows]


def check(form: Form, case: Case, dtype: torch.dtype, generator: torch.Generator) -> None:
    """The property: as near to float64 as the type allows, zeros and -inf exactly where nothing is to be seen."""
    call = arguments(case, dtype, generator)
    want, lse = expected(call)
    # what takes no part may hold anything
    out = ~taken(call)[:, None, :, None]
    for name in ("key", "value"):
        call[name] = torch.cat(
            [call[name][:, :, : case.older], call[name][:, :, case.older :].masked_fill(out, torch.nan)], 2
        )
    call["query"] = call["query"].masked_fill(out, torch.nan)
    if case.fillers:
        # contents of the place that stands in for a filler are read; they count for nothing
        call |= {name: call[name].nan_to_num(0.0) for name in ("query", "key", "value")}
    got, share = form(**call)
    assert got.dtype == dtype and share.dtype == torch.float32
    assert relative(got, want) < TOLERANCE[dtype]
    blank = lse == -torch.inf
    assert torch.equal(share == -torch.inf, blank)
    assert not got[blank].any()
    assert ((share.double() - lse)[~blank].abs() < LSE_TOLERANCE[dtype]).all()


@pytest.mark.parametrize("dtype", BOTH, ids=("float32", "float16"))
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_form_is_right(backend: str, name: str, dtype: torch.dtype, poisoned: None) -> None:
    if backend == "triton" and dtype == torch.float16 and name in ("one", "none", "narrow", "padded cache"):
        pytest.skip("half precision adds nothing here")
    check(partial(run, backend), CASES[name], dtype, fresh())


@pytest.mark.parametrize("name", ["all", "padded rows", "cached"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_logarithm_the_output_is_the_same(backend: str, name: str, poisoned: None) -> None:
    call = arguments(CASES[name], torch.float32, fresh())
    alone = selected_attention(**call, backend=backend)
    assert isinstance(alone, Tensor)
    assert relative(alone, expected(call)[0]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tokens_are_plain_causal_attention(backend: str) -> None:
    call = arguments(CASES["all"], torch.float32, fresh())
    want = F.scaled_dot_product_attention(call["query"], call["key"], call["value"], is_causal=True)
    made = selected_attention(**call, backend=backend)
    if backend == "torch":
        assert torch.equal(made, want)
    assert relative(made, want) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_rows_and_twice_is_the_same(backend: str) -> None:
    call = arguments(CASES["padded rows"], torch.float32, fresh())
    output, share = run(backend, **call)
    again, _ = run(backend, **call)
    assert torch.equal(output, again)
    for row in range(2):
        own = {name: part[row : row + 1] if isinstance(part, Tensor) else part for name, part in call.items()}
        kept = own["valid"][0]
        own |= {"index": own["index"][:, kept], "valid": None}
        alone, alone_share = run(backend, **own)
        assert relative(output[row : row + 1], alone) < TOLERANCE[torch.float32]
        seen = alone_share.isfinite()
        assert torch.equal(share[row : row + 1].isfinite(), seen)
        assert torch.allclose(share[row : row + 1][seen], alone_share[seen], atol=1e-5)


def _late(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Every place one too far, as a count that is off by one would have it."""
    last = call["query"].shape[2] - 1
    return form(**call | {"index": (call["index"] + 1).clamp(max=last)})


def _short(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Without the last chosen tokens, as if the ragged last block were forgotten."""
    cut = {name: None if call[name] is None else call[name][:, :-9] for name in ("index", "valid")}
    return form(**call | cut)


def _young(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Without the oldest key."""
    return form(**call | {"key": call["key"][:, :, 1:], "value": call["value"][:, :, 1:]})


def _filled(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Fillers take part, as the last token."""
    last = call["query"].shape[2] - 1
    return form(**call | {"index": call["index"].masked_fill(~call["valid"], last), "valid": None})


def _dirty(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Rows that nobody chose are left as memory was."""
    output, share = form(**call)
    return output.masked_fill(~taken(call)[:, None, :, None], torch.nan), share


def _base_two(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    output, share = form(**call)
    return output, share / 0.6931


def _mixed(form: Form, **call: Any) -> tuple[Tensor, Tensor]:
    """Key heads in another order than their query heads."""
    return form(**call | {"key": call["key"].flip(1)})


def _without(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda form, **call: form(**call | {name: None})


SABOTEURS = {
    "forgets the padding": ("padded cache", _without("first")),
    "forgets that there are fillers": ("group of seven", _filled),
    "forgets the soft cap": ("capped", _without("softcap")),
    "is one place late": ("odd", _late),
    "drops the last block": ("odd", _short),
    "forgets an older key": ("cached", _young),
    "leaves memory as it was": ("odd", _dirty),
    "answers in base two": ("odd", _base_two),
    "mixes up heads": ("cached", _mixed),
}


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("name", SABOTEURS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_saboteur_is_found(backend: str, name: str) -> None:
    case, breaks = SABOTEURS[name]
    with pytest.raises(AssertionError):
        check(partial(breaks, partial(run, backend)), CASES[case], torch.float32, fresh())


def test_rows_in_chunks_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm_eff.kernels.selected_attention import fast

    generator = fresh()
    for name in ("padded rows", "cached", "capped"):
        monkeypatch.setattr(fast, "CHUNK", 17)
        check(partial(run, "torch"), CASES[name], torch.float32, generator)
        call = arguments(CASES[name], torch.float32, generator)
        few = selected_attention(**call, backend="torch")
        monkeypatch.setattr(fast, "CHUNK", 1000)
        assert relative(few, selected_attention(**call, backend="torch")) < TOLERANCE[torch.float32]


def test_the_kernel_is_an_operation_of_torch() -> None:
    call = arguments(replace(CASES["padded rows"], rows=40, kept=30), torch.float32, fresh())
    plain = [call[name] for name in ("query", "key", "value", "index", "valid", "first")]
    for lse in (False, True):
        torch.library.opcheck(
            torch.ops.vlm_eff.selected_attention, (*plain, 0.1, 0.0, lse), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_compiles_whole(backend: str) -> None:
    call = arguments(replace(CASES["padded rows"], rows=40, kept=30), torch.float32, fresh())
    compiled = torch.compile(partial(run, backend), fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(**call), run(backend, **call), strict=True):
        assert torch.equal(got, want)


def test_operations_are_counted() -> None:
    call = arguments(CASES["cached"], torch.float32, fresh())
    with FlopCounterMode(display=False) as counter:
        run("triton", **call)
    # two products with 51 older keys and half of 60 chosen ones, for 60 rows of two heads
    assert counter.get_total_flops() == 2 * 60 * 4 * 128 * (51 + 30)


def test_what_the_kernel_does_not_take_is_said() -> None:
    call = arguments(CASES["one"], torch.float32, fresh())
    assert why_not(selected_attention, **_positional(call)) is None
    odd = {name: call[name][..., :48] for name in ("query", "key", "value")}
    assert "width 48" in (why_not(selected_attention, **_positional(call | odd)) or "")
    assert "values of width 32" in (
        why_not(selected_attention, **_positional(call | {"value": call["value"][..., :32]})) or ""
    )
    spread = call["key"].transpose(2, 3).contiguous().transpose(2, 3)
    assert "stride" in (why_not(selected_attention, **_positional(call | {"key": spread})) or "")
    with pytest.raises(CapabilityError, match="width 48"):
        selected_attention(**call | odd, backend="triton")
    assert relative(selected_attention(**call | odd), expected(call | odd)[0]) < TOLERANCE[torch.float32]


def _positional(call: dict[str, Any]) -> dict[str, Any]:
    return call | {"scaling": 0.1, "return_lse": False}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"index": torch.zeros(2, 3, dtype=torch.long)}, "index"),
        ({"index": torch.zeros(3, dtype=torch.long)}, "dimensions"),
        ({"valid": torch.ones(1, 2, dtype=torch.bool)}, "valid"),
        ({"first": torch.zeros(2, dtype=torch.long)}, "first"),
        ({"softcap": -1.0}, "softcap"),
        ({"key": torch.zeros(1, 2, 149, 64)}, "key"),
        ({"key": torch.zeros(1, 3, 150, 64), "value": torch.zeros(1, 3, 150, 64)}, "2 query heads over 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        selected_attention(**arguments(CASES["one"], torch.float32, fresh()) | change)
