"""What a kernel can do for a whole model at most: the share of attention, and the bound of a decode step.

A kernel that is three times faster helps a model little where little of the model's time is its own. These are bounds
from counting, before any measurement: a prefill by FLOPs; a decode step, which reads all weights and the cache, by
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Sizes of a language model at one prompt.

    linear: weights in linear layers of all decoder layers; parameters: all weights, embeddings included
    """

    name: str
    length: int
    layers: int
    heads: int
    key_heads: int
    width: int
    linear: float
    parameters: float

    @property
    def attention_flops(self) -> float:
        """Causal attention of all layers: 2 H Dh L^2 each."""
        return 2.0 * self.heads * self.width * self.length**2 * self.layers

    @property
    def linear_flops(self) -> float:
        """Products with weights: 2 P L."""
        return 2.0 * self.linear * self.length

    @property
    def attention_share(self) -> float:
        """Share of attention in the FLOPs of a prefill."""
        return self.attention_flops / (self.attention_flops + self.linear_flops)

    @property
    def cache_bytes(self) -> float:
        """Keys and values of one sequence in 16 bits."""
        return 2.0 * 2 * self.length * self.layers * self.key_heads * self.width

    def prefill_bound(self, kernel: float) -> float:
        """How many times faster a prefill gets at most, if attention alone gets `kernel` times faster."""
        return 1 / (1 - self.attention_share + self.attention_share / kernel)

    def decode_bound(self, batch: int, bits: float) -> float:
        """How many times faster a decode step gets at most, if the cache takes `bits` a number in place of 16."""
        weights, cache = 2.0 * self.parameters, batch * self.cache_bytes
        return (weights + cache) / (weights + cache * bits / 16)


def _linear(layers: int, hidden: int, inner: int, keys: int) -> float:
    # query and output, key and value, the three of the MLP
    return float(layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner))


_LLAMA = _linear(32, 4096, 11008, 4096)
_MISTRAL = _linear(32, 4096, 14336, 1024)
_QWEN = _linear(28, 3584, 18944, 512)
MODELS = (
    Model("LLaVA-1.5-7B", 640, 32, 32, 32, 128, _LLAMA, 6.74e9),
    Model("LLaVA-NeXT-7B (Vicuna)", 2944, 32, 32, 32, 128, _LLAMA, 6.74e9),
    Model("LLaVA-NeXT-7B (Mistral)", 2944, 32, 32, 8, 128, _MISTRAL, 7.24e9),
    Model("Qwen2.5-VL-7B", 32768, 28, 28, 4, 128, _QWEN, 7.5e9),
)
# bits a number takes with scale and lowest value in 16 bits: groups of 64, of 32 at 2 bits
BITS = {"INT8": 8.5, "INT4": 4.5, "INT2": 3.0}


def bounds_table() -> str:
    """The bounds of a prefill and of a decode step as Markdown."""
    lines = [
        "| prefill | tokens | attention, of FLOPs | attention 2x faster | attention for nothing |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        faster = " | ".join(f"{model.prefill_bound(kernel):.2f}x" for kernel in (2.0, float("inf")))
        lines.append(f"| {model.name} | {model.length:,} | {model.attention_share:.1%} | {faster} |")
    lines += ["", f"| decode step, batch 1 / 8 / 32 | {' | '.join(BITS)} |", "|---|" + "---|" * len(BITS)]
    for model in MODELS:
        cells = [
            " / ".join(f"{model.decode_bound(batch, bits):.2f}x" for batch in (1, 8, 32)) for bits in BITS.values()
        ]
        lines.append(f"| {model.name}, {model.length:,} tokens | {' | '.join(cells)} |")
    return "\n".join(lines)
