"""The costs of one call: names, what they add up to, and what is left open."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from tests.saved_model import LAYERS, TOKENS
from vlm_eff import attach
from vlm_eff.core.errors import ConfigError
from vlm_eff.eval.costs.cases import Case, Source, grid
from vlm_eff.eval.costs.energy import energy_of
from vlm_eff.eval.costs.machine import attention_of, commit_of, fingerprint
from vlm_eff.eval.costs.measure import measure_call
from vlm_eff.eval.costs.watch import run_timed
from vlm_eff.eval.subject import Subject
from vlm_eff.kvcache import streaming_llm
from vlm_eff.tokens import fastv, tome

# the keys of docs/costs.md
KEYS = {
    "batch", "prompt_tokens", "output_tokens", "ttft_ms", "e2e_ms", "tpot_ms", "ttft_e2e_ms", "vision_ms",
    "prefill_ms", "itl_ms", "prefill_tok_s", "decode_tok_s", "request_s", "peak_mem_bytes", "kv_bytes",
    "kv_bytes_logical", "kv_bytes_per_layer", "tokens", "n_eq", "flops", "energy_j", "energy_reason",
}  # fmt: skip


def ticking(step: float = 1.0) -> Callable[[], float]:
    """A clock that says one step more whenever it is asked."""
    counter = itertools.count()
    return lambda: next(counter) * step


@pytest.fixture(scope="module")
def inputs(subject: Subject) -> object:
    return Source().inputs(subject, Case())


def test_every_key_is_there(subject: Subject, inputs: dict[str, torch.Tensor]) -> None:
    source = Source()
    made = measure_call(subject, inputs, None, 3, prepare=lambda: source.inputs(subject, Case()), itl=True)
    said = made.to_dict()
    assert set(said) == KEYS
    assert made.output_tokens == 3 and len(said["itl_ms"]["all"]) == 2
    assert made.energy_j is None and made.energy_reason == "not asked for"
    assert made.tokens["vision_in"] == made.n_eq == TOKENS
    assert made.tokens["text"] == made.prompt_tokens - TOKENS
    config = subject.model.config.get_text_config()
    entry = 2 * config.num_key_value_heads * config.head_dim * 4
    # the last new token never entered the cache
    assert made.kv_bytes == made.kv_bytes_logical == (made.prompt_tokens + 2) * entry * LAYERS
    assert made.flops is not None
    for part in ("prefill", "step"):
        analytic = made.flops[part]["analytic"]
        assert {name: made.flops[part]["measured"][name] for name in analytic} == pytest.approx(analytic, rel=0.01)
    assert made.flops["overhead"] == 0


def test_pruning_is_counted_against_the_original_prompt(subject: Subject, inputs: dict[str, torch.Tensor]) -> None:
    bare = measure_call(subject, inputs, None, 2, flops=False, clock=ticking())
    with attach(subject.model, fastv(layer=1, keep_ratio=0.5)) as handle:
        pruned = measure_call(subject, inputs, handle, 2, flops=False, clock=ticking())
    assert pruned.prompt_tokens == bare.prompt_tokens and pruned.prefill_tok_s == bare.prefill_tok_s
    assert pruned.n_eq == (TOKENS + (LAYERS - 1) * TOKENS / 2) / LAYERS < bare.n_eq
    assert pruned.kv_bytes < 0.7 * bare.kv_bytes
    assert sum(pruned.kv_bytes_per_layer) == pruned.kv_bytes
    with attach(subject.model, streaming_llm(keep_count=20)) as handle:
        evicted = measure_call(subject, inputs, handle, 3, clock=ticking())
    assert evicted.kv_bytes < 0.4 * bare.kv_bytes and evicted.n_eq == TOKENS
    assert evicted.flops is not None
    assert evicted.flops["step"]["measured"]["decoder"] == evicted.flops["step"]["analytic"]["decoder"]
    with attach(subject.model, tome(r=4)) as handle:
        merged = measure_call(subject, inputs, handle, 1, clock=ticking())
    assert merged.tokens["merged"] > 0 and merged.flops is not None and merged.flops["step"] is None


def test_times_are_those_of_the_clock(subject: Subject, inputs: dict[str, torch.Tensor]) -> None:
    # asked at the start, at the first token and at the end; with `each` at every token
    three = run_timed(subject, inputs, 3, clock=ticking())
    assert (three.first, three.last, three.per_token) == (1, 2, 0.5)
    each = run_timed(subject, inputs, 4, each=True, clock=ticking(2.0))
    assert each.gaps == (2, 2, 2) and each.last == 10
    one = run_timed(subject, inputs, 1, clock=ticking())
    assert one.per_token is None and one.first == one.last == 1
    made = measure_call(subject, inputs, None, 1, flops=False, clock=ticking())
    assert made.tpot_ms is None and made.decode_tok_s is None and made.e2e_ms == made.ttft_ms
    with pytest.raises(ConfigError, match="at least 1"):
        run_timed(subject, inputs, 0)


def test_a_cpu_has_no_energy_counter() -> None:
    joules, reason = energy_of(lambda: None, torch.device("cpu"))
    assert joules is None and reason is not None and "cpu" in reason


def test_grid_is_every_combination() -> None:
    cases = grid(batch=[1, 2], new_tokens=[4], prompt_tokens=[0, 32, 64])
    assert len(cases) == 6 and Case(2, 1, 0, 32, 4) in cases
    for wrong in ({"batch": [0]}, {"images": [0]}, {"new_tokens": []}, {"frames": [-1]}):
        with pytest.raises(ConfigError):
            grid(**wrong)


def test_inputs_are_as_asked(subject: Subject) -> None:
    def shape(case: Case, source: Source | None = None) -> torch.Size:
        ids: torch.Tensor = (source or Source()).inputs(subject, case)["input_ids"]
        return ids.shape

    short = shape(Case())
    assert shape(Case(batch=3)) == (3, short[1])
    assert shape(Case(prompt_tokens=40))[1] >= short[1] + 30
    assert shape(Case(images=2))[1] >= short[1] + TOKENS
    # this model takes no videos: frames are shown as pictures
    assert shape(Case(images=0, frames=2))[1] == shape(Case(images=2))[1]
    own = Source((Image.new("RGB", (9, 9)),), "what is there ?")
    assert shape(Case(images=2, image_size=50), own)[0] == 1


def test_a_machine_is_described(subject: Subject, tmp_path: object) -> None:
    said = fingerprint(subject)
    assert said["attention"] == attention_of(subject) == {"text": "sdpa", "vision": "sdpa"}
    assert {"device", "packages", "threads", "load_average", "dtype", "commit", "board"} <= set(said)
    assert commit_of(tmp_path) is None  # type: ignore[arg-type]
