"""One batch of items, shown to a model and answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vlm_eff.core.errors import InputError
from vlm_eff.core.handle import Handle
from vlm_eff.eval.costs.prompt import prompt_costs
from vlm_eff.eval.frames import read_footage
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.eval.tasks.item import Footage, Item, pixels_digest
from vlm_eff.video.clip import Clip
from vlm_eff.video.sampling import Sampling

Shows = Literal["video", "pictures"]


@dataclass(frozen=True)
class Shown:
    """An item made ready: what the model is shown, what the run notes of it, or why it cannot be asked."""

    item: Item
    row: Row | None
    media: list[dict[str, Any]]
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """Text of an answer, its length in tokens with the one that ends it, and what the prompt cost."""

    text: str
    new_tokens: int
    costs: dict[str, Any]


def show(item: Item, sampling: Sampling | None, video_as: Shows) -> Shown:
    """Open the media of an item; what cannot be opened is said in `error`."""
    parts: list[Image.Image | Clip] = []
    notes: list[dict[str, Any]] = []
    try:
        for one in item.media:
            if isinstance(one, Footage):
                clip, note = read_footage(one, sampling)
                parts.extend([clip] if video_as == "video" else as_pictures(clip))
                notes.append(note)
                continue
            picture = one.open()
            parts.append(picture)
            notes.append({"picture": pixels_digest(picture), "size": list(picture.size)})
    except InputError as error:
        return Shown(item, None, notes, str(error))
    return Shown(item, Row(tuple(parts), item.prompt), notes)


def as_pictures(clip: Clip) -> list[Image.Image]:
    """The frames of a clip, for models that take pictures alone."""
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in clip.frames]


def shows(subject: Subject, video_as: Shows | Literal["auto"]) -> Shows:
    """How a model is shown videos: as such where its processor takes them, else frame by frame."""
    if video_as != "auto":
        return video_as
    return "video" if subject.watches else "pictures"


def ask(subject: Subject, rows: Sequence[Row], handle: Handle | None, max_new_tokens: int) -> list[Answer]:
    """Greedy answers to a batch; costs are means over its rows, of the prompt where not said otherwise."""
    inputs = subject.batch(rows)
    if handle is not None:
        handle.reset()
    with torch.inference_mode():
        output = subject.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    texts = subject.processor.batch_decode(new, skip_special_tokens=True)
    costs = _bare_costs(subject, inputs) if handle is None else prompt_costs(handle.stats())
    lengths = _lengths(new, subject.model.generation_config.eos_token_id)
    costs = {name: _rounded(value) for name, value in costs.items()}
    return [Answer(text.strip(), length, costs) for text, length in zip(texts, lengths, strict=True)]


def _lengths(new: torch.Tensor, end: int | list[int] | None) -> list[int]:
    if end is None:
        return [new.shape[1]] * new.shape[0]
    ends = torch.isin(new, torch.tensor(end, device=new.device).reshape(-1))
    # tokens up to the first end, that one included
    before = (ends.cumsum(1) == 0).sum(1)
    return [min(int(count) + 1, new.shape[1]) for count in before]


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else round(value, 5)


def _bare_costs(subject: Subject, inputs: Any) -> dict[str, Any]:
    config, ids = subject.model.config, inputs["input_ids"]
    known = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    places = torch.tensor([token for token in known if token is not None], device=ids.device, dtype=ids.dtype)
    visual = float(torch.isin(ids, places).sum(1).float().mean())
    if not visual:
        return {}
    layers = config.get_text_config().num_hidden_layers
    return {
        "visual_tokens": visual,
        "n_eq": visual,
        "n_eq_asked": visual,
        "flops_ratio": 1.0,
        "kv_bytes_ratio": 1.0,
        "visual_per_layer": [visual] * layers,
    }
