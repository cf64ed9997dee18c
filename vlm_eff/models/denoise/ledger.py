"""What a handle on a pipeline notes of its runs."""

from __future__ import annotations

from vlm_eff.core.denoise_report import CallReport, DenoiseReport
from vlm_eff.models.denoise.view import Call


class DenoiseLedger:
    """Reports, one a run."""

    def __init__(self) -> None:
        self.reports: list[DenoiseReport] = []
        self.calls = 0

    def begin(self, scheduler: str) -> None:
        """A run begins; one without any call leaves nothing behind."""
        if self.reports and not self.reports[-1].calls:
            self.reports.pop()
        self.reports.append(DenoiseReport(scheduler, 0))

    @property
    def now(self) -> DenoiseReport:
        """The report of this run."""
        return self.reports[-1]

    def add(self, call: Call, whole: int, kept: int, mismatches: int) -> None:
        """Note a call; whole: FLOPs of a full one, kept: bytes kept for later steps."""
        self.calls += 1
        report = self.now
        report.steps = max(report.steps, call.step.count)
        report.calls.append(
            CallReport(call.step.index, call.branch, call.denoiser, call.rows, call.computed, int(whole))
        )
        report.state_bytes = max(report.state_bytes, kept)
        report.mismatches = mismatches

    def reset(self) -> None:
        """Forget all runs; the one under way goes on in a new report."""
        self.calls = 0
        if self.reports:
            self.reports = [DenoiseReport(self.reports[-1].scheduler, self.reports[-1].steps)]

    def seen(self) -> list[DenoiseReport]:
        """Reports of runs in which the denoiser was called."""
        return [report for report in self.reports if report.calls]
