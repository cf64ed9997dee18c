"""The engine of token merging: who may take in others x how many go x where and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite, MergeTokens, TokenSite
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.policies import check_count
from vlm_eff.importance.bipartite import match_into
from vlm_eff.models.denoise.view import TokenView

# below so many tokens merging costs more than it saves
_LEAST = {"cpu": 1024}
_LEAST_ELSEWHERE = 4096


@dataclass(frozen=True)
class Split:
    """goals: [R or 1, G] ascending places that others go into; sources: [R or 1, S] the others

    first: [R or 1, S] sources that go before all others
    """

    goals: Tensor
    sources: Tensor
    first: Tensor | None = None


class Splitter(Protocol):
    """Who may take in others."""

    @property
    def needs_change(self) -> bool:
        """Whether it looks at what the guidance changed."""
        ...

    def __call__(self, view: TokenView, ratio: float) -> Split | None:
        """The places of a block's tokens, by what may become of them; None to merge none."""
        ...


@part
@dataclass(frozen=True)
class OneACell:
    """One token of each cell of the grid may take in others; the rest, and what fits into no cell, may go.

    stride: rows and columns of a cell          random: draw it, else the first of the cell
    """

    stride: tuple[int, int] = (2, 2)
    random: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _check_stride(self.stride)

    @property
    def needs_change(self) -> bool:
        return False

    def __call__(self, view: TokenView, ratio: float) -> Split | None:
        key, device = ("cells", view.grid), view.tokens.device
        step, split = view.notes.get(key, (None, None))
        if step != view.step.index:
            split = self._split(view.grid, view.step.index, device)
            view.notes[key] = (view.step.index, split)
        return split if split is None or isinstance(split, Split) else None

    def _split(self, grid: tuple[int, int, int], step: int, device: torch.device) -> Split | None:
        (frames, rows, columns), (high, wide) = grid, self.stride
        down, across = rows // high, columns // wide
        if not down or not across:
            return None
        inside = torch.zeros(frames, down, across, dtype=torch.long)
        if self.random:
            inside = torch.randint(high * wide, inside.shape, generator=drawing(self.seed, step))
        row = torch.arange(down)[:, None] * high + inside // wide
        column = torch.arange(across) * wide + inside % wide
        frame = torch.arange(frames)[:, None, None]
        goal = torch.zeros(frames * rows * columns, dtype=torch.bool)
        goal[(frame * rows * columns + row * columns + column).flatten()] = True
        return Split(*(chosen.nonzero()[:, 0][None].to(device) for chosen in (goal, ~goal)))


@part
@dataclass(frozen=True)
class ImportantPool:
    """Random ones of the tokens that the guidance changes most may take in others, and all unimportant ones go.

    stride: one token of a cell as large may take in others
    pool:   tokens in the pool of the most important, as a multiple of those that are left
    """

    stride: tuple[int, int] = (2, 2)
    pool: float = 1.25
    seed: int = 0

    def __post_init__(self) -> None:
        _check_stride(self.stride)
        if not self.pool >= 1:
            raise ConfigError(explain(f"pool={self.pool!r}", "a number of at least 1", "Correct the number"))

    @property
    def needs_change(self) -> bool:
        return True

    def __call__(self, view: TokenView, ratio: float) -> Split | None:
        change = view.change
        if change is None:
            if view.step.index > 0 and not view.notes.get("guided"):
                got = "a run without classifier-free guidance"
                wanted = "runs with a guidance scale above 1, in one batch or in two calls a step"
                raise CapabilityError(explain(f"importance='guidance' in {got}", wanted, "Use importance='none'"))
            return None
        view.notes["guided"] = True
        tokens, cell = change.shape[1], self.stride[0] * self.stride[1]
        goals = tokens // cell
        left = max(tokens - int(tokens * ratio), goals)
        pool = min(max(math.ceil(self.pool * left), goals), tokens)
        if not goals:
            return None
        order = (-change).argsort(dim=1, stable=True)
        outside = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :pool], False)
        drawn = torch.rand(tokens, generator=drawing(self.seed, view.step.index)).to(change.device)
        chosen = drawn.masked_fill(outside, torch.inf).argsort(dim=1, stable=True)
        goal, source = (part.sort(dim=1).values for part in (chosen[:, :goals], chosen[:, goals:]))
        return Split(goal, source, outside.gather(1, source))


@part
@dataclass(frozen=True)
class TokenMerger(DenoisePlugin):
    """Merges the most similar tokens in front of modules of the denoiser's blocks, and copies back behind them.

    split:          who may take in others       ratio: share of the tokens that go, capped by what may go
    kinds:          modules: of "self" and "cross" attention, and "mlp"
    max_downsample: coarsest level of a UNet, None for the finest that has blocks
    steps:          begin and end of merging, as fractions of the run's steps
    min_tokens:     fewer are left alone; None for 1024 on a CPU and 4096 elsewhere
    """

    method: str
    split: Splitter
    ratio: float = 0.5
    kinds: tuple[str, ...] = ("self",)
    max_downsample: int | None = None
    steps: tuple[float, float] = (0.0, 1.0)
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ConfigError(explain(f"ratio={self.ratio!r}", "a number from 0 to 1", "Correct the number"))
        if not 0 <= self.steps[0] <= self.steps[1] <= 1:
            got = f"steps={self.steps!r}"
            raise ConfigError(explain(got, "two ascending fractions of the run, such as (0.0, 0.8)", "Correct them"))
        unknown = sorted(set(self.kinds) - {"self", "cross", "mlp"})
        if unknown or not self.kinds:
            raise ConfigError(explain(f"kinds={self.kinds!r}", "some of self, cross, mlp", "Correct the names"))
        if self.min_tokens is not None:
            check_count("min_tokens", self.min_tokens, 0)

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return (TokenSite(self.kinds, self.split.needs_change and self.ratio > 0),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.DENOISER_TOKENS})

    def at(self, site: TokenSite, view: TokenView) -> MergeTokens | None:
        rows, tokens, width = view.tokens.shape
        least = self.min_tokens
        if least is None:
            least = _LEAST.get(view.tokens.device.type, _LEAST_ELSEWHERE)
        begin, end = (round(fraction * view.step.count) for fraction in self.steps)
        wanted = int(tokens * self.ratio)
        coarsest = view.finest if self.max_downsample is None else self.max_downsample
        if not wanted or tokens < least or view.downsample > coarsest:
            return None
        if not begin <= view.step.index < end:
            return None
        split = self.split(view, self.ratio)
        if split is None:
            return None
        sources = split.sources.shape[1]
        home, into = match_into(view.tokens, split.goals, split.sources, min(wanted, sources), split.first)
        return MergeTokens(into, home, 2 * rows * sources * split.goals.shape[1] * width)


def drawing(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step of any run: the pipeline's own are left alone, and a run can be repeated."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _check_stride(stride: tuple[int, int]) -> None:
    if len(stride) != 2 or not all(isinstance(side, int) and side >= 1 for side in stride):
        raise ConfigError(explain(f"stride={stride!r}", "rows and columns of a cell, such as (2, 2)", "Correct it"))
