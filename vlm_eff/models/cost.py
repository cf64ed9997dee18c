"""Analytic FLOPs of a model, from the shapes of its modules and the numbers of tokens that the reports tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from vlm_eff.core.report import PrefillReport
from vlm_eff.core.tower_report import TowerReport
from vlm_eff.models.adapter import Adapter


@dataclass(frozen=True)
class PartFlops:
    """FLOPs by part of a model.

    blocks:    transformer blocks of the vision tower; embedding: the rest of the tower
    projector: what lies between tower and decoder; decoder: its layers; head: what makes logits
    overhead:  what runs inside hooks and taps of plugins, wherever they are
    """

    blocks: float = 0.0
    embedding: float = 0.0
    projector: float = 0.0
    decoder: float = 0.0
    head: float = 0.0
    overhead: float = 0.0

    @property
    def model(self) -> float:
        """All parts of the model, without the plugins' own work."""
        return self.blocks + self.embedding + self.projector + self.decoder + self.head

    @property
    def total(self) -> float:
        """Everything."""
        return self.model + self.overhead


def layer_flops(layer: nn.Module, tokens: float, keys: float, queries: float | None = None) -> float:
    """FLOPs of one decoder layer for `tokens` tokens over `keys` keys: 2 a multiply-add, causal attention not halved.

    queries: tokens that attend, when some of them bypass the attention; default all.
    Counts linear maps and attention products, as `torch.utils.flop_counter` does; norms and activations are left out.
    """
    linear = sum(
        module.in_features * module.out_features for module in layer.modules() if isinstance(module, nn.Linear)
    )
    attention = layer.self_attn
    heads_width = attention.config.num_attention_heads * attention.head_dim
    return 2.0 * linear * tokens + 4.0 * heads_width * (tokens if queries is None else queries) * keys


def decoder_flops(
    adapter: Adapter, tokens: Sequence[float], keys: Sequence[float], rows: int, queries: Sequence[float] | None = None
) -> float:
    """FLOPs of all decoder layers for `rows` rows; `tokens`, `keys` and `queries` (default the tokens) per layer.

    Embedding and head are left out.
    """
    per_layer = zip(adapter.layers, tokens, keys, tokens if queries is None else queries, strict=True)
    return rows * sum(layer_flops(layer, count, seen, asking) for layer, count, seen, asking in per_layer)


def prefill_flops(
    adapter: Adapter, prefill: PrefillReport, towers: Sequence[TowerReport], *, bare: bool = False, logits: int = 1
) -> PartFlops:
    """FLOPs of a prompt with its pictures, by part; what plugins do for themselves is not foreseen: overhead is 0.

    towers: runs of the tower for this prompt, images and videos; none leaves tower and projector at 0
    bare:   of the model without plugins; logits: positions a row that the head is asked for, one in `generate`
    """
    head = adapter.head
    embedding = projector = blocks = 0.0
    for run in towers:
        patches = sum(run.tokens) - run.images * int(adapter.class_token)
        width = _width(adapter.tower)
        embedding += _around(adapter.tower, adapter.blocks, patches, width)
        blocks += run.flops_bare if bare else run.flops
        for part in adapter.core.children():
            if part is not adapter.tower and not any(adapter.decoder is one for one in part.modules()):
                projector += _around(part, None, patches, width) + _bare_matrices(part, sum(prefill.visual))
    return PartFlops(
        blocks=blocks,
        embedding=embedding,
        projector=projector,
        decoder=prefill.flops_bare if bare else prefill.flops,
        head=2.0 * head.weight.numel() * prefill.rows * logits,
    )


def _width(tower: nn.Module) -> int:
    """Width of the tower's tokens, by what makes tokens of pixels."""
    return next(part.out_channels for part in tower.modules() if isinstance(part, nn.Conv2d | nn.Conv3d))


def _around(module: nn.Module, blocks: nn.ModuleList | None, patches: int, width: int) -> float:
    """FLOPs of convolutions without overlap and of chains of linear maps, of which the first joins whole patches."""
    made = 0.0
    for chain in _chains(module, blocks):
        rows = None
        for part in chain.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                made += 2.0 * part.weight.numel() * patches
            if isinstance(part, nn.Linear):
                rows = patches * width / part.in_features if rows is None else rows
                made += 2.0 * part.weight.numel() * rows
    return made


def _chains(module: nn.Module, blocks: nn.ModuleList | None) -> Iterator[nn.Module]:
    """What is computed one after the other on the same rows: children of a tower, or a projector as a whole."""
    if blocks is None:
        yield module
        return
    for child in module.children():
        if child is blocks:
            continue
        inner = isinstance(child, nn.ModuleList) or any(part is blocks for part in child.modules())
        yield from _chains(child, blocks) if inner else (child,)


def _bare_matrices(module: nn.Module, visual: int) -> float:
    """FLOPs of matrices that are no linear layer, which project visual tokens."""
    linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear | nn.Embedding)}
    bare = [weight for weight in module.parameters() if weight.dim() == 2 and id(weight) not in linear]
    return sum(2.0 * weight.numel() * visual for weight in bare)
