"""Which calls of a denoiser hold both halves of classifier-free guidance, and which half is the conditional one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import StateError, explain
from vlm_eff.models.denoise.branch import batched_guidance, condition_of
from vlm_eff.models.denoise.view import Call

# pipelines of diffusers that put the conditional half first in the batch; all others of it put it second
_COND_FIRST = frozenset(
    {
        "DiTPipeline",
        "LuminaPipeline",
        "OmniGenPipeline",
        "StableCascadePriorPipeline",
        "StableCascadeDecoderPipeline",
        "WuerstchenPriorPipeline",
        "WuerstchenDecoderPipeline",
    }
)
# cache contexts in which pipelines call the two branches one after the other
COND, UNCOND = "cond", "uncond"


class Halves:
    """Tells batches that hold both halves from batches of prompts.

    Both halves have the same latents under different conditions. At the first step of a run the same is true of two
    prompts that start from one noise, so it is looked at again at the second; before that it is certain only where the
    pipeline says so. Two comparisons on the host for each shape in a run, no more.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._found: dict[Any, bool] = {}
        self._open: dict[Any, bool] = {}

    def reset(self) -> None:
        """A new run begins."""
        self._found, self._open = {}, {}

    def rely(self, call: Call, latents: Tensor) -> None:
        """Something was computed that is wrong if this call does not hold both halves."""
        key = (call.denoiser, tuple(latents.shape))
        if key in self._open:
            self._open[key] = True

    def certain(self, call: Call, module: nn.Module, latents: Tensor, context: str | None) -> bool | None:
        """Whether a call holds both halves; None while it may."""
        if latents.shape[0] % 2 or context in (COND, UNCOND):
            return False
        key = (call.denoiser, tuple(latents.shape))
        if key in self._found:
            return self._found[key]
        if key in self._open and call.step.index == 0:
            return self._says(module, call.named) or None
        alike = batched_guidance(latents) and _differ(condition_of(call.named), latents.shape[0])
        if alike and call.step.index == 0:
            self._open[key] = False
            return self._says(module, call.named) or None
        if self._open.pop(key, False) and not alike:
            raise StateError(
                explain(
                    f"{type(self._pipe).__name__} says that it guides, and has the same latents in both halves of its "
                    "first batch, but not of its second",
                    "classifier-free guidance with two halves a batch",
                    "Leave this pipeline without plugins of its guidance",
                )
            )
        self._found[key] = alike
        return alike

    def _says(self, module: nn.Module, named: dict[str, Any]) -> bool:
        if getattr(self._pipe, "do_classifier_free_guidance", None) is True:
            return True
        labels, classes = (
            named.get("class_labels"),
            getattr(getattr(module, "config", None), "num_embeds_ada_norm", None),
        )
        if not isinstance(labels, Tensor) or classes is None:
            return False
        # one half of the labels is the class for none
        none = (labels == classes).view(2, -1).all(1).tolist()
        return none[0] != none[1]


class Order:
    """Finds out which half is the conditional one from what the pipeline makes of the two.

    What the scheduler is given is scale * (b + r * (a - b)) of the first output a and the second b: r is the guidance
    scale where the first is the conditional one, and 1 minus it where the second is. Read once, on the host, and kept
    as long as the handle lives. Before that: the name of the cache context, or what is known of diffusers' pipelines.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._known: dict[str, bool] = {}
        self._relied: dict[str, bool] = {}
        self._outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """A new run begins."""
        self._outputs = {}

    def conditional_first(self, denoiser: str, context: str | None = None, batched: bool = True) -> bool | None:
        """Whether the first half is the conditional one; None while nobody knows.

        context: of the first of two calls; batched: whether the halves share a batch
        """
        known = self._known.get(denoiser)
        if known is None and context in (COND, UNCOND):
            known = context == COND
        elif known is None and batched and type(self._pipe).__module__.startswith("diffusers."):
            known = type(self._pipe).__name__ in _COND_FIRST
        return known

    def rely(self, denoiser: str, first: bool) -> None:
        """Something was computed that is wrong if this is."""
        self._relied[denoiser] = first

    def show(self, denoiser: str, first: Tensor, second: Tensor) -> None:
        """The two outputs of a step, which the pipeline will now make one of."""
        if denoiser not in self._known:
            self._outputs[denoiser] = (first[:1].clone(), second[:1].clone())

    def stepped(self, given: Any) -> None:
        """The scheduler was given this."""
        shown, self._outputs = self._outputs, {}
        for denoiser, (first, second) in shown.items():
            found = conditional_is_first(given, first, second) if isinstance(given, Tensor) else None
            if found is None:
                continue
            self._known[denoiser] = found
            if self._relied.pop(denoiser, found) != found:
                names = ("first", "second") if found else ("second", "first")
                raise StateError(
                    explain(
                        f"{type(self._pipe).__name__} puts the conditional half {names[0]}, and was taken to put it "
                        f"{names[1]} in this run",
                        "an image from the right half",
                        "Run it again: the handle knows now",
                    )
                )


def conditional_is_first(given: Tensor, first: Tensor, second: Tensor) -> bool | None:
    """Which of two outputs [1, ...] guidance has led `given` [R, ...] towards; None where it cannot be read."""
    given = given[:1]
    if first.dim() > 1:
        # learned variances stand behind the channels that are guided
        channels = min(given.shape[1], first.shape[1])
        given, first, second = given[:, :channels], first[:, :channels], second[:, :channels]
    if given.shape != first.shape:
        return None
    g, b = given.flatten().float(), second.flatten().float().to(given.device)
    d = first.flatten().float().to(given.device) - b
    bb, bd, dd, gb, gd, gg = torch.stack([b @ b, b @ d, d @ d, g @ b, g @ d, g @ g]).double().tolist()
    whole = bb * dd - bd * bd
    # outputs that lie on one line do not tell how far along it guidance went from how it was scaled
    if not all(map(math.isfinite, (bb, dd, gg))) or whole <= 1e-3 * bb * dd:
        return None
    scale, along = (gb * dd - gd * bd) / whole, (gd * bb - gb * bd) / whole
    left = gg - scale * gb - along * gd
    # what is left must be small beside what the difference explains, or it explains nothing
    if scale == 0 or left > 0.05 * along * along * whole / bb:
        return None
    ratio = along / scale
    # at a scale of 1 one of the outputs is all that is left, and either may be it
    return True if ratio > 1.001 else False if ratio < -0.001 else None


def _differ(condition: Tensor | None, rows: int) -> bool:
    if condition is None or condition.shape[0] != rows:
        return False
    return not torch.equal(condition[: rows // 2], condition[rows // 2 :])
