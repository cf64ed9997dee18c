"""Videos for tests: hand-made ones as views, and those of the tiny models with their true frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_vlm, visual_layout, visual_mask
from vlm_eff import attach
from vlm_eff.core.action import Action
from vlm_eff.core.plugin import Plugin, Site
from vlm_eff.models.view import View
from vlm_eff.models.visual import CellWriter, make_spans


class _Rows:
    """What a hand-made view answers when it is asked for the tower: one number a token."""

    def __init__(self, tower: Tensor | None) -> None:
        self._tower = tower

    def tower(self, wanted: Any) -> Any:
        return self._tower if self._tower is None else self._tower[:, :, None]


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
    """What the plugin answers before the language model."""
    return plugin.at(Site(0), view)


def kept(plugin: Plugin, view: View) -> list[int]:
    """Candidates of the only row that stay; all of them when the plugin changes nothing."""
    action = act(plugin, view)
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


def first_layer(inputs: TinyInputs, plugin: Plugin) -> list[dict[int, np.ndarray]]:
    """What the first decoder layer is handed while the plugin is on: of each row, position to state, float64."""
    model, seen = tiny_vlm(inputs.family), []
    with torch.no_grad(), attach(model, plugin) as handle:
        # hooks run in the order of their registration: this one comes after the runtime's
        hook = decoder_layers(model)[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        hook.remove()
    rows = []
    for states, left in zip(seen[0].double().numpy(), handle.survivors(0), strict=True):
        # fillers stand in front
        rows.append(dict(zip(left.tolist(), states[len(states) - len(left) :], strict=True)))
    return rows


def peaks(x: list[np.ndarray], neighbours: int) -> list[float]:
    """Density-peak scores: density of the nearest tokens, itself among them, times the distance to a denser one."""
    width = len(x[0])
    apart = [[float(((a - b) ** 2).sum()) / width for b in x] for a in x]
    density = [math.exp(-sum(sorted(line)[:neighbours]) / min(neighbours, len(x))) for line in apart]
    scores = []
    for i, line in enumerate(apart):
        denser = [line[j] for j in range(len(x)) if (density[j], -j) > (density[i], -i)]
        scores.append(density[i] * math.sqrt(min(denser) if denser else max(line)))
    return scores
