"""A call of the denoiser, and what a plugin sees of a unit inside it when it is asked whether to compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vlm_eff.core.denoise import DenoisePlugin, Predict, Step
from vlm_eff.models.denoise.state import Past, Unit, UnitState


@dataclass
class Call:
    """One call of a denoiser.

    denoiser: its name in the pipeline     branch: of the guidance, in order of appearance
    latents:  what is denoised [R, ...]    named:  its arguments by name
    factor:   share of the call's rows that reach the denoiser itself: 0 when it is predicted, 1/2 for one half of the
              guidance
    skipped:  share of the FLOPs of what reaches it that is not computed
    fresh:    nothing kept may be used in it: units inside it were left out of the last step, or had other rows
    saved:    FLOPs by which what is not skipped is cheaper than in the bare model (merged tokens)
    notes:    what drivers tell one another within this call
    figures:  the notes of the run's report
    """

    denoiser: str
    step: Step
    branch: int
    latents: Tensor
    named: dict[str, Any]
    factor: float = 1.0
    skipped: float = 0.0
    fresh: bool = False
    saved: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.latents.shape[0]

    @property
    def computed(self) -> float:
        """Share of a full evaluation."""
        return self.factor * max(1.0 - self.skipped, 0.0)


@dataclass
class UnitView:
    """A unit at a step.

    unit:   which one it is                     branch: of the guidance
    inputs: what it is called with [R, ...]; for the denoiser the latents
    probe:  cheap looks at this step by name, where the driver has any; see the drivers
    """

    unit: Unit
    call: Call
    inputs: Tensor
    state: UnitState
    probe: Callable[[str], Tensor] | None = None

    @property
    def step(self) -> Step:
        """The step of the run."""
        return self.call.step

    @property
    def branch(self) -> int:
        """The guidance branch."""
        return self.call.branch

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.inputs.shape[0]

    @property
    def history(self) -> list[Past]:
        """What was computed before in this run, oldest first; not more than the plugin's `depth`."""
        return self.state.history

    @property
    def notes(self) -> dict[str, Any]:
        """What the plugin wrote down at earlier steps of this run, for this unit and branch."""
        return self.state.notes

    def count(self, name: str) -> None:
        """Add one to a note of the run's report."""
        self.call.figures[name] = self.call.figures.get(name, 0.0) + 1

    def renewed(self, asker: str) -> list[bool]:
        """Which rows were computed at the step at which `asker` asked this before; to be asked once a step."""
        last = self.notes.get(f"{asker}.step")
        self.notes[f"{asker}.step"] = self.step.index
        return [step.index == last for step in self.history[-1].steps] if self.history else [False] * self.rows


@dataclass
class Asked:
    """A unit of which a plugin was asked, and what it said."""

    plugin: DenoisePlugin
    unit: Unit
    inputs: Tensor
    state: UnitState
    answer: Predict | None

    @property
    def name(self) -> str:
        """Name of the unit where its FLOPs are counted."""
        return f"{self.unit.kind}:{self.unit.name}"

    @property
    def left(self) -> Tensor:
        """Rows [K] that are computed although others are predicted."""
        assert self.answer is not None and self.answer.rows is not None
        return (~self.answer.rows).nonzero()[:, 0]


@dataclass
class TokenView:
    """The tokens of the image at the input of a block, before its first normalisation.

    tokens:     [R, N, C]                  grid: frames, rows and columns of the N tokens, row by row
    block:      0-based, in the order in which they run; blocks: how many there are
    downsample: how much coarser the grid is than the latents, 1 outside of UNets; finest: the least of all blocks
    change:     [R, N] how much the guidance changed each token at the step before, where the plugin asked for it and
                it is known
    notes:      what the plugin wrote down in this run, for all blocks and branches
    """

    tokens: Tensor
    grid: tuple[int, int, int]
    block: int
    blocks: int
    downsample: int
    finest: int
    call: Call
    change: Tensor | None
    notes: dict[Any, Any]

    @property
    def step(self) -> Step:
        """The step of the run."""
        return self.call.step
