"""Empty figures that no window belongs to, and what they look like as a file."""

from __future__ import annotations

import io
from typing import Any

from vlm_eff.core.errors import CapabilityError, explain

_DPI = 120


def blank_figure(width: float, height: float) -> Any:
    """An empty figure, inches, which needs no screen.

    Raises:
        CapabilityError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CapabilityError(
            explain(
                "a plot without matplotlib", "an installation that has it", 'Install it: pip install "vlm-eff[eval]"'
            )
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Any) -> bytes:
    """The bytes of a figure's PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
