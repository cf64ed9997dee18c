"""The plot of the error meter: errors by layer, and what they buy."""

from __future__ import annotations

from vlm_eff.eval.figure import blank_figure, png_of
from vlm_eff.eval.kv_meter import Result


def plot_errors(result: Result) -> bytes:
    """A PNG with the error of every policy by layer, beside its mean error against the bytes it keeps.

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
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    right.set_xlim(left=0)
    left.legend(fontsize=7)
    return png_of(figure)
