"""What is shipped of the real-weights model: projector and low-rank changes, at most 10 MB together."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from vlm_eff.core.errors import InputError, explain

from . import low_rank
from .stamp import CHANGES, PROJECTOR, SHIPPED

MAX_BYTES = 10_000_000


def write_shipped(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the projector and the low-rank changes of a model in training, in bfloat16.

    Raises:
        InputError: values that are not finite, or more than 10 MB.
    """
    parts = {
        PROJECTOR: model.model.multi_modal_projector.state_dict(),
        CHANGES: low_rank.changes(model.model.language_model),
    }
    size = sum(2 * value.numel() for part in parts.values() for value in part.values())
    finite = all(bool(torch.isfinite(value).all()) for part in parts.values() for value in part.values())
    if size > MAX_BYTES or not finite:
        raise InputError(
            explain(
                f"trained weights of {size} bytes, {'finite' if finite else 'not finite'}",
                f"finite weights of at most {MAX_BYTES} bytes",
                "Train again, or with a lower rank",
            )
        )
    for name, part in parts.items():
        save_file({key: value.to(torch.bfloat16).contiguous() for key, value in part.items()}, folder / name)


def apply_shipped(model: LlavaForConditionalGeneration, folder: Path = SHIPPED) -> None:
    """Put the shipped projector into a fresh model and merge the shipped changes, in place.

    Raises:
        InputError: the files are not there.
    """
    for name in (PROJECTOR, CHANGES):
        if not (folder / name).is_file():
            raise InputError(explain(f"no {name} in {folder}", "the files that come along", "Install vlm-eff again"))
    projector = {name: value.float() for name, value in load_file(folder / PROJECTOR).items()}
    model.model.multi_modal_projector.load_state_dict(projector)
    low_rank.merge(model.model.language_model, load_file(folder / CHANGES))
