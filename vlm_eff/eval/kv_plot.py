"""The plot of the error meter: errors by layer, and what they buy."""

from __future__ import annotations

from typing import Any

from vlm_eff.eval.figure import blank_figure, png_of
from vlm_eff.eval.kv_meter import Result


def plot_errors(result: Result) -> bytes:
    """A PNG of `errors_figure`."""
    return png_of(errors_figure(result))


def errors_figure(result: Result) -> Any:
    """The error of every policy by layer, beside its mean error against the bytes it keeps.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    figure = blank_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for label, policy in result.policies.items():
        (line,) = left.plot(result.layers, policy.error, marker="o", markersize=3, label=label)
        right.plot([100 * policy.bytes_ratio], [policy.mean], "o", color=line.get_color())
        right.annotate(label, (100 * policy.bytes_ratio, policy.mean), fontsize=7, xytext=(4, 4),
                       textcoords="offset points")  # fmt: skip
    left.set(xlabel="decoder layer", ylabel="relative error of the attention output", title="by layer")
    right.set(xlabel="bytes kept, % of the full cache", ylabel="mean over layers", title="against what is kept")
    for axes in (left, right):
        # room for labels above the highest point
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    # room for the labels, which stand to the right of their points
    right.set_xlim(0, max(105.0, *(105 * policy.bytes_ratio for policy in result.policies.values())))
    left.legend(fontsize=7)
    return figure
