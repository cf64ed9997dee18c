"""The costs of one call, under the names that `docs/costs.md` defines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Costs:
    """One call of a model: a prompt with pictures, then new tokens; None is what was not measured, or cannot be.

    batch, prompt_tokens, output_tokens: rows; tokens a row of the prompt as it is written, padding included; new tokens
    ttft_ms:      from inputs on the device to the first new token on the host: tower, projector, plugins, prefill
    ttft_e2e_ms:  the same from the picture and the text on: with the processor
    vision_ms, prefill_ms: before and behind the moment in which the decoder is entered, together one `ttft_ms` of a run
                  of its own
    tpot_ms:      (e2e - ttft) / (new tokens - 1); None for one token
    itl_ms:       gaps between new tokens: p50, p95, p99 and all of them; None unless asked for
    e2e_ms:       from inputs on the device to the last new token on the host
    prefill_tok_s: prompt tokens of all rows, as the bare model sees them, a second of `ttft_ms`
    decode_tok_s: new tokens of all rows behind the first, a second; None for one token
    request_s:    rows a second of `e2e_ms`
    peak_mem_bytes: see `memory.py`
    kv_bytes, kv_bytes_logical, kv_bytes_per_layer: what the cache takes behind the last token; see `models/cache_bytes`
    tokens:       vision_in and text a row, kept_per_layer, merged: taken away inside the tower; means over the rows
    n_eq:         visual tokens averaged over layers
    flops:        prefill and step, measured and analytic, by part; plugin overhead apart; see `flops.py`
    energy_j:     of one call; None with `energy_reason`
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    e2e_ms: float
    tpot_ms: float | None = None
    ttft_e2e_ms: float | None = None
    vision_ms: float | None = None
    prefill_ms: float | None = None
    itl_ms: dict[str, Any] | None = None
    prefill_tok_s: float = 0.0
    decode_tok_s: float | None = None
    request_s: float = 0.0
    peak_mem_bytes: dict[str, Any] = field(default_factory=dict)
    kv_bytes: int = 0
    kv_bytes_logical: int = 0
    kv_bytes_per_layer: tuple[int, ...] = ()
    tokens: dict[str, Any] = field(default_factory=dict)
    n_eq: float = 0.0
    flops: dict[str, Any] | None = None
    energy_j: float | None = None
    energy_reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)
