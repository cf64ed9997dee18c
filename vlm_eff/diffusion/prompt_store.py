"""Trajectories of finished runs, found again by likeness of their keys; bounded, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.files import write_file
from vlm_eff.models.denoise.start import Point, Trajectory

_FORMAT = "vlm_eff prompt store 1"


@dataclass(eq=False)
class _Kept:
    trajectory: Trajectory
    used: dict[int, int] = field(default_factory=dict)


class PromptStore:
    """Trajectories by key, for one handle or for several; not for several threads at once.

    max_bytes, max_entries: what it holds at most. When it is full, the point goes that saved least: number of steps
    that it lets out x times that it was used (least computationally beneficial and frequently used, Nirvana section
    4.3); of equal ones the oldest.

    Raises:
        ConfigError: a bound below 1.
    """

    def __init__(self, max_bytes: int = 1 << 30, max_entries: int = 256) -> None:
        if max_bytes < 1 or max_entries < 1:
            raise ConfigError(explain(f"a store of {max_bytes} bytes, {max_entries} entries", "1 and more", "Give it"))
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.hits = self.misses = self.evicted = 0
        self._kept: list[_Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all latents, histories and keys."""
        return sum(_bytes(kept.trajectory) for kept in self._kept)

    def find(self, settings: str, parts: dict[str, Tensor]) -> tuple[Trajectory | None, float]:
        """The trajectory of the same settings whose key is nearest, and how near: 1 for the same, 0 for none."""
        best: tuple[Trajectory | None, float] = (None, 0.0)
        for kept in self._kept:
            if kept.trajectory.settings == settings:
                near = similarity(kept.trajectory.parts, parts)
                if near > best[1]:
                    best = (kept.trajectory, near)
        return best

    def use(self, trajectory: Trajectory, step: int) -> Point:
        """A point of a trajectory, which counts as used."""
        kept = next(kept for kept in self._kept if kept.trajectory is trajectory)
        kept.used[step] = kept.used.get(step, 0) + 1
        self.hits += 1
        return trajectory.points[step]

    def add(self, trajectory: Trajectory) -> None:
        """Keep a trajectory, in place of one with the same key."""
        self._kept = [
            kept
            for kept in self._kept
            if kept.trajectory.settings != trajectory.settings
            or similarity(kept.trajectory.parts, trajectory.parts) < 1.0
        ]
        self._kept.append(_Kept(trajectory))
        while len(self._kept) > self.max_entries:
            self._kept.remove(min(self._kept, key=_worth))
            self.evicted += 1
        while self._kept and self.bytes > self.max_bytes:
            self._evict_point()

    def clear(self) -> None:
        """Forget everything."""
        self._kept = []

    def _evict_point(self) -> None:
        kept, step = min(
            ((kept, step) for kept in self._kept for step in kept.trajectory.points),
            key=lambda item: item[1] * (1 + item[0].used.get(item[1], 0)),
        )
        del kept.trajectory.points[step]
        self.evicted += 1
        if not kept.trajectory.points:
            self._kept.remove(kept)

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write everything to a safetensors file; what is no tensor stands in its metadata as JSON."""
        tensors: dict[str, Tensor] = {}
        entries = []
        for number, kept in enumerate(self._kept):
            trajectory, place = kept.trajectory, f"{number}"
            points = {
                str(step): {
                    "sample": _pack(point.sample, f"{place}.{step}.sample", tensors),
                    "state": {k: _pack(v, f"{place}.{step}.{k}", tensors) for k, v in point.state.items()},
                    "used": kept.used.get(step, 0),
                }
                for step, point in trajectory.points.items()
            }
            parts = {name: _pack(part, f"{place}.part.{name}", tensors) for name, part in trajectory.parts.items()}
            entries.append(
                {"settings": trajectory.settings, "count": trajectory.count, "parts": parts, "points": points}
            )
        write_file(Path(path), save(tensors, {"format": _FORMAT, "entries": json.dumps(entries)}))

    @classmethod
    def load(cls, path: str | Path, max_bytes: int = 1 << 30, max_entries: int = 256) -> PromptStore:
        """Read what `save` wrote, on the CPU; `InputError` for another file."""
        made = cls(max_bytes, max_entries)
        try:
            opened = safe_open(str(path), framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(
                explain(f"{path} is no prompt store ({error})", _FORMAT, "Give a file that save() wrote")
            ) from None
        with opened as file:
            meta = file.metadata() or {}
            if meta.get("format") != _FORMAT:
                raise InputError(explain(f"{path} is no prompt store", _FORMAT, "Give a file that save() wrote"))
            for entry in json.loads(meta["entries"]):
                points = {
                    int(step): Point(
                        _unpack(point["sample"], file), {k: _unpack(v, file) for k, v in point["state"].items()}
                    )
                    for step, point in entry["points"].items()
                }
                parts = {name: _unpack(part, file) for name, part in entry["parts"].items()}
                used = {int(step): int(point["used"]) for step, point in entry["points"].items()}
                made._kept.append(_Kept(Trajectory(entry["settings"], parts, entry["count"], points), used))
        return made


def similarity(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Likeness of two keys: 1 where all is the same, else the least cosine of all parts and rows; 0 where they differ
    in what has no likeness (numbers of classes, shapes, names).

    Parts are [R, D], compared row by row; those of whole numbers have to be equal.
    """
    if one.keys() != other.keys():
        return 0.0
    least = 1.0
    for name, a in one.items():
        b = other[name].to(a.device)
        if a.shape != b.shape or a.dtype != b.dtype:
            return 0.0
        if torch.equal(a, b):
            continue
        if not a.is_floating_point() or a.shape[-1] < 2:
            return 0.0
        cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)
        # nearly the same is not the same
        least = min(least, float(cosine.min()), 1 - 1e-9)
    return max(least, 0.0)


def _worth(kept: _Kept) -> int:
    return sum(step * (1 + kept.used.get(step, 0)) for step in kept.trajectory.points)


def _bytes(trajectory: Trajectory) -> int:
    values: list[Any] = [trajectory.parts, [[point.sample, point.state] for point in trajectory.points.values()]]
    return sum(tensor.nbytes for tensor in _tensors(values))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, list):
        return {"list": [_pack(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    return {"plain": value}


def _unpack(value: dict[str, Any], file: Any) -> Any:
    if "tensor" in value:
        return file.get_tensor(value["tensor"])
    return [_unpack(item, file) for item in value["list"]] if "list" in value else value["plain"]
