"""Charts of a compressed cache: what heads keep, and bytes and bits by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlm_eff.demo.work.charts import layer_bars
from vlm_eff.eval.figure import blank_figure
from vlm_eff.eval.kv_kept import PromptKept

# shares are written into a heatmap of at most so many cells
_MOST_WRITTEN = 160
# brighter than this, black is read better than white
_BRIGHT = 0.6


def kept_chart(kept: PromptKept) -> Any:
    """Share of the text's and of the visual entries that each layer and key head stores, as two heatmaps."""
    layers = [layer.layer for layer in kept.layers]
    figure = blank_figure(8.4, 0.3 * len(layers) + 1.2)
    for axes, kind in zip(figure.subplots(1, 2), ("text", "visual"), strict=True):
        share = kept.share(kind)
        drawn = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_title(f"{kind} entries kept", fontsize=9)
        axes.set_xlabel("key head", fontsize=8)
        axes.set_ylabel("decoder layer", fontsize=8)
        axes.set_xticks(range(share.shape[1]))
        axes.set_yticks(range(len(layers)), layers)
        axes.tick_params(labelsize=8)
        if share.numel() <= _MOST_WRITTEN:
            _write(axes, share)
    figure.colorbar(drawn, ax=figure.axes, format=lambda part, place: f"{part:.0%}").ax.tick_params(labelsize=8)
    return figure


def bytes_chart(kept: PromptKept) -> Any:
    """Bytes of the prompt in each layer's cache, and bits a number where any were saved, as bars."""
    rows: list[tuple[str, Sequence[float], Sequence[float]]] = [
        ("bytes", [layer.bytes_bare for layer in kept.layers], [layer.bytes for layer in kept.layers])
    ]
    if kept.packed:
        full = [kept.full_bits] * len(kept.layers)
        rows += [(f"bits, {kind}", full, [bits or 0 for bits in kept.mean_bits(kind)]) for kind in ("text", "visual")]
    return layer_bars(rows, [layer.layer for layer in kept.layers])


def _write(axes: Any, share: Tensor) -> None:
    for row, shares in enumerate(share.tolist()):
        for column, part in enumerate(shares):
            ink = "black" if part > _BRIGHT else "white"
            axes.text(column, row, f"{part:.0%}", ha="center", va="center", fontsize=8, color=ink)
