"""What the vision tower saw, brought to the visual tokens of the prompt.

The tower runs once on all images of a request (and once on all videos), before beams are expanded and outside the
decoder's call, so what is seen waits here until the prompt arrives. Rows of attention are reduced where they are made.
"""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.core.plugin import TowerAttention, TowerFeatures, TowerKept, TowerKeys, TowerObservation
from vlm_eff.models import seams
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.family import PatchMap, TowerRun
from vlm_eff.models.tap import install_tap
from vlm_eff.models.tower_rows import reduce_attention, reduce_keys
from vlm_eff.models.visual import VisualSpans

# channels of projector output that are kept to recognise tokens by
_PROBE = 8


@dataclass
class Seen:
    """What one run of the tower showed, in its own order; lists because some towers attend image by image."""

    given: dict[str, Any]
    parts: dict[TowerObservation, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    probe: Tensor | None = None


@dataclass(frozen=True)
class Arrived:
    """The runs that a prompt's visual tokens come from: their maps, and each candidate's place [B, V] in their joint
    tokens."""

    seen: tuple[Seen, ...]
    maps: tuple[PatchMap, ...]
    index: Tensor
    valid: Tensor

    def values(self, need: TowerObservation) -> Tensor:
        """Values of the candidates [B, V, C]; 0 where a row has fewer."""
        runs = [bring(torch.cat(run.parts[need])) for run, bring in zip(self.seen, self.maps, strict=True)]
        picked = torch.cat(runs)[self.index]
        return torch.where(self.valid[:, :, None], picked, 0.0)


class TowerObserver:
    """Reduces what some tower blocks attend to and with, and keeps the newest runs of the tower."""

    def __init__(self, adapter: Adapter, wanted: set[TowerObservation]) -> None:
        self._adapter = adapter
        self._wanted = {self._resolve(need) for need in wanted}
        self._by_block: dict[int, list[TowerAttention | TowerKeys]] = defaultdict(list)
        for need in self._wanted:
            if isinstance(need, TowerAttention | TowerKeys):
                self._by_block[adapter.block(need.block)].append(need)
        self._runs: list[Seen] = []
        self._seconds = 0.0

    def seconds(self) -> float:
        """Time spent on reducing since the last call of this method, on the host."""
        spent, self._seconds = self._seconds, 0.0
        return spent

    def _resolve(self, need: TowerObservation) -> TowerObservation:
        """The observation with a block number from 0 on and a row that this tower has."""
        if isinstance(need, TowerFeatures | TowerKept):
            return need
        need = replace(need, block=self._adapter.block(need.block))
        if isinstance(need, TowerAttention) and need.row == "auto":
            need = replace(need, row="cls" if self._adapter.class_token else "received")
        return need

    def refuse_after(self, block: int | None) -> None:
        """Raise `CapabilityError` when a block from `block` on is looked at, whose patches another plugin takes out."""
        late = [seen for seen in self._by_block if block is not None and seen >= block]
        if late:
            raise CapabilityError(
                explain(
                    f"attention or keys of tower block {min(late)}, from patches that are merged or dropped by then",
                    f"blocks before {block} beside a plugin that acts inside the tower",
                    "Look at an earlier block, or attach one of the two",
                )
            )

    def install(self, undo: Undo) -> None:
        """Put the tap on the wanted blocks."""
        seams.before(self._adapter.tower, self._begin, undo)
        if self._by_block:
            attention = {block: attention_of(self._adapter.blocks[block]) for block in sorted(self._by_block)}
            install_tap(attention, self._saw, undo)
        projector = self._adapter.projector
        if projector is not None:
            seams.after(projector, self._projected, undo)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind_partial(*args).arguments
        # pixels are not kept: grids and sizes are all a map needs
        given = {k: v for k, v in {**bound, **kwargs}.items() if k in ("grid_thw", "image_sizes")}
        self._runs = [*self._runs[-1:], Seen(given)]

    def told(self, kept: Tensor) -> None:
        """Note which patches [P, 1] went through the tower, in its order."""
        if TowerKept() in self._wanted and self._runs:
            self._runs[-1].parts[TowerKept()].append(kept)

    def _saw(self, block: int, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("cu_seq_lens_q") is not None:
            raise CapabilityError(
                explain(
                    "tower attention under flash attention's packed images",
                    "eager and sdpa towers",
                    'Load the model with attn_implementation={"vision_config": "sdpa"}',
                )
            )
        started = time.perf_counter()
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        skip = 1 if self._adapter.class_token else 0
        for need in self._by_block[block]:
            if isinstance(need, TowerKeys):
                made = reduce_keys(key, need.heads)
            else:
                made = reduce_attention(query, key, mask, scaling, need.row, need.heads)[:, :, None]
            self._runs[-1].parts[need].append(made[:, skip:].flatten(0, 1))
        self._seconds += time.perf_counter() - started

    def _projected(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        # called once for each run of the tower; what is projected later are our own merged features
        if not self._runs or self._runs[-1].probe is not None:
            return
        self._runs[-1].probe = output[..., :_PROBE].clone()
        if TowerFeatures() in self._wanted:
            self._runs[-1].parts[TowerFeatures()].append(args[0].flatten(0, 1))

    def arrive(self, spans: VisualSpans, embeds: Tensor) -> Arrived:
        """Find the runs and the place in them of each candidate of a prompt that enters the language model.

        embeds: [B, S, D] what the decoder is given
        """
        rows = len(spans.slot)
        for expand in range(1, rows + 1):
            # beams and returned sequences repeat each sample's rows: row r belongs to sample r // expand
            if rows % expand == 0 and (found := self._match(spans, embeds, expand)) is not None:
                return found
        raise CapabilityError(
            explain(
                f"{int(spans.count.sum())} visual tokens in the prompt that are not those the tower was run for last",
                "prompts whose images were all encoded in one run of the tower, and videos in another",
                "Pass pixels together with the prompt",
            )
        )

    def _match(self, spans: VisualSpans, embeds: Tensor, expand: int) -> Arrived | None:
        once = VisualSpans(**{name: getattr(spans, name)[::expand] for name in VisualSpans.__dataclass_fields__})
        kinds = [kind for kind in (once.valid & ~once.video, once.video) if bool(kind.any())]
        # images are encoded first
        seen = tuple(self._runs[-len(kinds) :])
        if len(seen) < len(kinds) or any(need not in run.parts for run in seen for need in self._wanted):
            raise StateError(
                explain("the vision tower was not run while attached", "images encoded by the model", "Pass pixels")
            )
        probe = embeds[::expand, :, :_PROBE].gather(1, once.slot[:, :, None].expand(-1, -1, _PROBE))
        maps, index, start = [], torch.zeros_like(once.slot), 0
        for run, kind in zip(seen, kinds, strict=True):
            bring = self._map(run, once, kind, probe[kind])
            if bring is None:
                return None
            maps.append(bring)
            index[kind] = torch.arange(start, start + int(kind.sum()), device=index.device)
            start += int(kind.sum())
        return Arrived(seen, tuple(maps), index.repeat_interleave(expand, 0), spans.valid)

    def _map(self, run: Seen, spans: VisualSpans, kind: Tensor, tokens: Tensor) -> PatchMap | None:
        """The map of a run, or None when it does not lead to the candidates in `kind` [B, V]."""
        described = TowerRun(run.given, lambda: list(_images(spans, kind)), run.probe, tokens)
        bring = self._adapter.family.tower_map(self._adapter.core.config, described)
        if bring is None:
            return None
        patches = sum(len(part) for part in next(iter(run.parts.values())))
        return bring if len(bring(torch.zeros(patches, 1))) == len(tokens) else None

    def candidates(self, need: TowerObservation, arrived: Arrived) -> Tensor:
        """Values of the candidates [B, V, C] that entered the language model; 0 where a row has fewer."""
        return arrived.values(self._resolve(need))


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a tower block."""
    for name in ("self_attn", "attention", "attn"):
        if hasattr(block, name):
            found: nn.Module = getattr(block, name)
            return found
    raise CapabilityError(
        explain(f"{type(block).__name__} without attention", "blocks with self_attn, attention or attn", "Report it")
    )


def _images(spans: VisualSpans, kind: Tensor) -> Iterator[list[tuple[int, int]]]:
    """Height and width of the tiles or frames of each image, in the order of the prompt."""
    columns = (kind, spans.image, spans.group, spans.y, spans.x)
    for valid, image, group, y, x in zip(*(column.cpu() for column in columns), strict=True):
        for number in image[valid].unique().tolist():
            here = valid & (image == number)
            groups = [here & (group == part) for part in group[here].unique().tolist()]
            yield [(int(y[one].max()) + 1, int(x[one].max()) + 1) for one in groups]
