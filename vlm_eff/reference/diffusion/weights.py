"""Where the weights of the small diffusion models lie, and how they are written: float16, one card beside each."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ...core.errors import InputError, explain

_FOLDER = Path(__file__).resolve().parent / "weights"
_NAMES = ("unet", "dit", "classifier")


def weights_of(name: str) -> Path:
    """Return the weights file of a bundled model: "unet", "dit" or "classifier".

    Raises:
        InputError: another name.
    """
    if name not in _NAMES:
        raise InputError(explain(f"model {name!r}", f"one of {', '.join(_NAMES)}", "use one of them"))
    return _FOLDER / f"{name}.safetensors"


def card_of(weights: Path) -> Path:
    """Return the card beside a weights file: how it was trained, and what it reached."""
    return weights.with_suffix(".json")


def save_half(state: dict[str, torch.Tensor], path: Path) -> Path:
    """Write tensors in float16, which is far finer than what training leaves undecided."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().half().contiguous() for key, value in state.items()}, path)
    return path
