"""Videos for tests: hand-made ones as views, and those of the tiny models with their true frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_vlm, visual_layout, visual_mask
from vlm_eff.core.action import Action
from vlm_eff.core.plugin import Plugin, Site
from vlm_eff.models.view import View
from vlm_eff.models.visual import CellWriter, make_spans


class _Rows:
    """What a hand-made view answers when it is asked for the tower: one number a token."""

    def __init__(self, tower: Tensor | None) -> None:
        self._tower = tower

    def tower(self, wanted: Any) -> Any:
        return self._tower


def film_view(*videos: Tensor, width: int = 2, tower: Tensor | None = None) -> View:
    """A view of one row with these videos [F, P, D] behind two words, their places in rows of `width`."""
    writer, start = CellWriter(), 2
    for x in videos:
        writer.next_image(video=True)
        for _ in x:
            writer.grid(np.arange(start, start + x.shape[1]), width)
            start += x.shape[1]
    spans = make_spans([writer.done()], torch.device("cpu"))
    tokens = torch.cat([x.flatten(0, 1) for x in videos])
    hidden = torch.cat([tokens.new_zeros(2, tokens.shape[1]), tokens])[None]
    counts = torch.tensor([[x.shape[0] * x.shape[1] for x in videos]])
    unread = dict.fromkeys(View.__dataclass_fields__)
    seen = {"layer": 0, "spans": spans, "hidden": hidden, "physical": spans.slot, "original": spans.count}
    seen |= {"image_original": lambda: counts, "observed": _Rows(tower)}
    return View(**unread | seen)  # type: ignore[arg-type]


def act(plugin: Plugin, view: View) -> Action | None:
    """What the plugin answers at its first site."""
    return plugin.at(plugin.sites[0], view)


def kept(plugin: Plugin, view: View) -> list[int]:
    """Candidates of the only row that stay; all of them when the plugin changes nothing."""
    action = plugin.at(Site(0), view)
    columns = range(view.spans.slot.shape[1]) if action is None else action.index[0][action.valid[0]].tolist()
    return list(columns)


def true_frames(inputs: TinyInputs) -> list[list[list[list[int]]]]:
    """Sequence positions of the tokens of each frame of each video of each row, in reading order."""
    rows = []
    for cells, mask in zip(visual_layout(inputs.family, inputs), visual_mask(inputs), strict=True):
        videos: dict[int, dict[int, list[int]]] = {}
        for cell, position in zip(cells, mask.nonzero()[:, 0].tolist(), strict=True):
            if cell["video"] and not cell["newline"]:
                videos.setdefault(cell["image"], {}).setdefault(cell["frame_or_tile"], []).append(position)
        rows.append([list(frames.values()) for frames in videos.values()])
    return rows


def entering(inputs: TinyInputs) -> np.ndarray:
    """What enters the first decoder layer of the bare model [B, S, D], float64."""
    model, seen = tiny_vlm(inputs.family), []
    hook = decoder_layers(model)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    made: np.ndarray = seen[0].double().numpy()
    return made


def cos(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors; 0 for a vector of zeros."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


def best(scores: list[float], count: int) -> list[int]:
    """Places of the `count` largest, ascending; ties go to the lower place."""
    return sorted(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count])
