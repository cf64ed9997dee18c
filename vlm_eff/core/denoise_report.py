"""What a handle says of one run of a diffusion pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CallReport:
    """One call of a denoiser.

    step:     0-based step of the run                         branch: guidance branch, in order of appearance
    denoiser: name in the pipeline                            rows:   rows of the batch it was called with
    computed: share of the call's FLOPs that was computed, 1 for a full evaluation
    flops:    FLOPs of a full evaluation of that shape (2 a multiply-add); 0 where no full one was ever seen
    """

    step: int
    branch: int
    denoiser: str
    rows: int
    computed: float
    flops: int = 0


@dataclass
class DenoiseReport:
    """One run of the pipeline: from one `set_timesteps` of its scheduler to the next.

    steps:       of the scheduler, as they were set; `calls` tells how many were made
    mismatches:  times that something kept did not fit and a unit was computed instead
    state_bytes: the most that was kept for later steps at any time
    deciding_ms: time spent on deciding and predicting, on the host
    """

    scheduler: str
    steps: int
    calls: list[CallReport] = field(default_factory=list)
    mismatches: int = 0
    state_bytes: int = 0
    deciding_ms: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def evaluations_bare(self) -> float:
        """Full evaluations that the bare pipeline would have made in these calls."""
        return float(len(self.calls))

    @property
    def evaluations(self) -> float:
        """Equivalent full evaluations that were made: calls, weighted by the share of their FLOPs."""
        return sum(call.computed for call in self.calls)

    @property
    def flops_bare(self) -> float:
        """FLOPs of the denoiser had every call been computed."""
        return float(sum(call.flops for call in self.calls))

    @property
    def flops(self) -> float:
        """FLOPs of the denoiser that were computed."""
        return sum(call.flops * call.computed for call in self.calls)

    @property
    def computed_steps(self) -> list[int]:
        """Steps in which at least one call was computed in full."""
        return sorted({call.step for call in self.calls if call.computed >= 1.0 - 1e-9})

    def line(self) -> str:
        """Rows of the printed table."""
        share = self.evaluations / self.evaluations_bare if self.calls else 1.0
        text = (
            f"  denoiser         {self.evaluations_bare:.0f} evaluations bare, {self.evaluations:.2f} computed "
            f"({share:.0%}) in {self.steps} steps of {self.scheduler}, {self.state_bytes:,} bytes kept, "
            f"{self.deciding_ms:.1f} ms deciding"
        )
        text += f", {self.mismatches} times nothing kept fitted" if self.mismatches else ""
        if self.notes:
            text += "\n  noted            " + ", ".join(f"{name} {value:g}" for name, value in self.notes.items())
        return text
