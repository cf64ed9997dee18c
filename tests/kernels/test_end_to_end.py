"""Whole models answer the same where every operation that has a kernel runs it, in Triton's interpreter."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tests.contracts import kit
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.kernels.ops import operations, prefer
from vlm_eff.kvcache import h2o, kivi, look_m, snapkv, visual_quant, zipvl_kv
from vlm_eff.models import received
from vlm_eff.recipes import zipvl
from vlm_eff.tokens import cross_modal_window, fastv, streaming_heads, tome, top_blocks, vertical_slash, zipvl_attention


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each operation ran its kernel."""
    # prompts are short here, and their rows few
    monkeypatch.setattr(received, "_MANY", 16)
    found: Counter[str] = Counter()
    for name, forms in operations().items():
        original = forms.forms["triton"]

        def counted(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            found[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setitem(forms.forms, "triton", counted)
    return found


def scores(backend: str, family: str, method: Any) -> torch.Tensor:
    """Logits of every step of an answer [B, steps, V]."""
    model = kit.model_of(family)
    with prefer(backend), attach(model, method):
        # the prompt, and two steps over what was stored: the second sees what the first wrote
        _, logits = kit.generate(model, tiny_inputs(family, (1, 2), pad="left"), 3)
    return logits


BOTH = ("llava", "qwen2_5_vl")
# what takes seconds in the interpreter runs on one of them; another method brings its operations to the other
ROWS: list[tuple[Any, set[str], tuple[str, ...]]] = [
    (snapkv(keep_ratio=0.5, window=4), {"window_scores", "compact"}, BOTH),
    (kivi(bits=4, group=8, residual=8), {"quantise", "packed_decode"}, BOTH[1:]),
    (visual_quant(bits=8), {"quantise", "packed_decode"}, BOTH[:1]),
    (zipvl_kv(), {"window_scores", "quantise", "packed_decode"}, BOTH[:1]),
    (zipvl(keep_mass=0.8), {"window_scores", "selected_attention", "quantise", "packed_decode"}, BOTH[1:]),
    (zipvl_attention(keep_mass=0.8), {"window_scores", "selected_attention"}, BOTH[:1]),
    (cross_modal_window(window=4, tile=(16, 16)), {"sparse_attention"}, BOTH[:1]),
    (streaming_heads(sinks=15, local=31, tile=(16, 16)), {"sparse_attention"}, BOTH[1:]),
    (vertical_slash(verticals=8, slashes=4, last=8, tile=(16, 16)), {"sparse_attention"}, BOTH[:1]),
    (top_blocks(keep_count=1, tile=(16, 16)), {"sparse_attention"}, BOTH[1:]),
    (tome(r_ratio=0.3), {"best_partner", "merge_tokens"}, BOTH),
    (fastv(layer=2, keep_ratio=0.5), {"window_scores", "compact"}, BOTH),
    (h2o(keep_ratio=0.5), {"column_scores", "compact"}, BOTH[:1]),
    (look_m(keep_ratio=0.5), {"best_partner", "sum_into"}, BOTH[1:]),
]


def test_operations_meet_both_models() -> None:
    met = [{name for _, names, families in ROWS if family in families for name in names} for family in BOTH]
    assert met[0] ^ met[1] == {"column_scores", "sum_into"}


@pytest.mark.parametrize(
    ("family", "method", "operations"),
    [(family, method, operations) for family in BOTH for method, operations, families in ROWS if family in families],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_answers_are_the_same(family: str, method: Any, operations: set[str], ran: Counter[str]) -> None:
    want = scores("torch", family, method)
    assert not ran
    got = scores("triton", family, method)
    assert operations <= set(ran), f"no kernel of {operations - set(ran)}"
    torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-4)
