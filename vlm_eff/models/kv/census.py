"""Who lives in a cache: entries and bytes, whole and by modality."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vlm_eff.core.cache import IMAGE, TEXT, VIDEO
from vlm_eff.core.report import ModalityReport
from vlm_eff.models.kv.book import Columns
from vlm_eff.models.kv.layer import CompressedLayer
from vlm_eff.models.kv.view import modality_at

NAMES = {TEXT: "text", IMAGE: "image", VIDEO: "video"}

Census = dict[int, tuple[float, float]]
"""modality -> entries a layer, row and key head, and bytes of all layers"""


def stored(layer: CompressedLayer) -> float:
    """Entries that a layer stores, mean over rows and heads, fillers left out."""
    positions = layer.positions()
    return float((positions >= 0).sum()) / max(positions.shape[0] * positions.shape[1], 1)


def take_census(layers: Iterable[CompressedLayer], record: Columns) -> Census:
    """Entries and bytes by modality.

    A part of the cache (a packed segment, or all that is stored as it was) counts for each modality by its share of the
    part's entries; what holds padding and fillers is shared out with the rest.
    """
    counts, sizes, heads = [], [], 0
    for layer in layers:
        modality, first, left = modality_at(record, layer.positions()), 0, layer.bytes
        heads += modality.shape[0] * modality.shape[1]
        for segment in layer.segments:
            counts.append(_count(modality[:, :, first : first + segment.count]))
            sizes.append(_bytes(segment.buffers))
            first, left = first + segment.count, left - sizes[-1]
        counts.append(_count(modality[:, :, first:]))
        sizes.append(left)
    # one question to the device for all layers
    table = torch.stack([one.to(counts[0].device) for one in counts]).tolist()
    everybody = [sum(row[place] for row in table) for place in range(len(NAMES))]
    made: Census = {}
    for place, name in enumerate(NAMES):
        # what no entry lives in serves all of them
        houses = ((size, row if any(row) else everybody) for size, row in zip(sizes, table, strict=True))
        share = sum(size * row[place] / max(sum(row), 1) for size, row in houses)
        made[name] = everybody[place] / max(heads, 1), share
    return made


def changes(before: Census, after: Census) -> tuple[ModalityReport, ...]:
    """What became of each modality that was there."""
    return tuple(
        ModalityReport(NAMES[name], entries, after[name][0], round(size), round(after[name][1]))
        for name, (entries, size) in before.items()
        if entries
    )


def _count(modality: Tensor) -> Tensor:
    return torch.stack([(modality == name).sum() for name in NAMES])


def _bytes(buffers: list[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in buffers if t.numel()}.values())
