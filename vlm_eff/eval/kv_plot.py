"""The plot of the error meter: errors by layer, and what they buy."""

from __future__ import annotations

import io
from typing import Any

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.eval.kv_meter import Result


def plot_errors(result: Result) -> bytes:
    """A PNG with the error of every policy by layer, beside its mean error against the bytes it keeps.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    figure = _figure()
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _figure() -> Any:
    """An empty figure that no window belongs to, so that no screen is needed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CapabilityError(
            explain(
                "a plot without matplotlib", "an installation that has it", 'Install it: pip install "vlm-eff[eval]"'
            )
        ) from None
    return Figure(figsize=(10, 4), layout="constrained")
