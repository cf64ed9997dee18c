"""How much classifier-free guidance changes each place of the latents: |conditional - unconditional|, step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from vlm_eff.models.denoise.branch import batched_guidance
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.rows import Streams
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.denoise.token_blocks import Grid


class GuidanceChange:
    """Listens to the denoiser's output: both halves of a batch, or the calls of both branches of a step.

    Asks the host once a step whether a batch is one of guidance.
    """

    def __init__(self, runtime: DenoiseRuntime) -> None:
        self._runtime = runtime
        self.forget()

    def forget(self) -> None:
        """A run begins or ends."""
        # step at which each was seen, and what was seen
        self._first: tuple[int, Tensor] | None = None
        self._now: tuple[int, Tensor] | None = None
        self._before: Tensor | None = None

    def link(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Around the denoiser, outside of whatever predicts its output."""
        call = self._runtime.call
        made = inner(*args, **kwargs)
        if call is None or not self._runtime.active:
            return made
        # what predicts a variance too has it behind its other channels
        channels = call.latents.shape[1] if call.latents.dim() > 3 else None
        output = Streams(made).tensors[0].detach()[:, :channels]
        half = call.rows // 2
        if batched_guidance(call.latents):
            self._seen(call.step.index, output[:half], output[half:])
        elif call.branch == 0:
            # the pipeline may write into its own
            self._first = (call.step.index, output.clone())
        elif self._first is not None and self._first[0] == call.step.index:
            self._seen(call.step.index, self._first[1], output)
        return made

    def _seen(self, step: int, one: Tensor, other: Tensor) -> None:
        if self._now is not None and self._now[0] != step:
            self._before = self._now[1]
        change = (one - other).float().abs()
        if self._before is not None and self._before.shape == change.shape:
            # a step whose guidance another plugin has left out says nothing
            change = torch.where(change.any(), change, self._before)
        self._now = (step, change)

    def of(self, step: int, grid: Grid, rows: int) -> Tensor | None:
        """Change [R, N] of each token at the newest step before `step`; None while it is not known.

        Averaged over what a token stands for. Of a batch that holds both branches both halves have the same.
        """
        if self._now is None:
            return None
        change = self._now[1] if self._now[0] < step else self._before
        if change is None or rows % change.shape[0]:
            return None
        count = grid[0] * grid[1] * grid[2]
        if change.dim() == 3:
            # packed latents [R, N, C] have one row a token
            found = change.mean(2) if change.shape[1] == count else None
        elif change.dim() == 4:
            found = adaptive_avg_pool2d(change.mean(1, keepdim=True), grid[1:]).flatten(1)
        else:
            found = adaptive_avg_pool3d(change.mean(1, keepdim=True), grid).flatten(1)
        return None if found is None else torch.cat([found] * (rows // change.shape[0]))
