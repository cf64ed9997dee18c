"""One request to a diffusion pipeline: in full, with plugins, and with as few steps as cost the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_eff.core.denoise_report import DenoiseReport
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.demo.work.watching import Watch
from vlm_eff.diffusion.guidance import Guide
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.together import Together
from vlm_eff.diffusion.token_merge import TokenMerger
from vlm_eff.eval.contact_sheet import to_image
from vlm_eff.eval.denoising import likeness, same_cost
from vlm_eff.eval.painter import Painter
from vlm_eff.eval.record import Record
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

MOST_STEPS = 200
_MOST_GUIDANCE = 30.0
# pictures smaller than this are scaled up, each pixel to a square
_SIDE = 384
# differences are drawn at most this many times as strong as they are
_MOST_AMPLIFIED = 64
HEAD = ("", "steps", "evaluations", "share of full", "PSNR to full", "kept between steps")


@dataclass(frozen=True)
class Request:
    """What is drawn; the painter knows the prompt or the class.

    plugins: attached together, by spec
    """

    plugins: Mapping[str, Plugin]
    steps: int = 20
    guidance: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        limits = (
            ("steps", self.steps, 2, MOST_STEPS),
            ("guidance", self.guidance, 0, _MOST_GUIDANCE),
            ("seed", self.seed, 0, 2**31 - 1),
        )
        for name, value, least, most in limits:
            whole = name == "guidance" or isinstance(value, int)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (whole and least <= value <= most):
                accepted = f"{'a number' if name == 'guidance' else 'a whole number'} from {least} to {most}"
                raise ConfigError(explain(f"{name} {value!r}", accepted, "Correct it"))
        if not self.plugins:
            raise ConfigError(explain("no plugin", "one plugin or more", "Choose one, such as forecast"))

    @property
    def label(self) -> str:
        """The plugins in words."""
        return " + ".join(self.plugins)


@dataclass(frozen=True)
class Rival:
    """The bare pipeline with fewer steps: as near to the plugins' cost as whole steps allow.

    psnr: to the full run, dB
    """

    steps: int
    psnr: float
    picture: Image.Image


@dataclass(frozen=True)
class Drawn:
    """One request, drawn in full and with plugins.

    asked:      what was drawn: a prompt or class numbers
    report:     of the run with plugins               details: the handle's own table
    psnr:       of it to the full run, dB; infinite when they are the same
    difference: absolute, `amplified` times as strong, black where both are the same
    rival:      None where the plugins save less than a step
    stands_in:  what takes the place of what is not computed, a word for each kind
    """

    request: Request
    model: str
    asked: Mapping[str, Any]
    report: DenoiseReport
    details: str
    psnr: float
    full: Image.Image
    made: Image.Image
    difference: Image.Image
    amplified: int
    rival: Rival | None
    stands_in: tuple[str, ...]
    device: str

    @property
    def share(self) -> float:
        """Of the evaluations of the full run that were computed."""
        return self.report.evaluations / self.report.evaluations_bare

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table, one row a run, below `HEAD`."""
        bare, steps = self.report.evaluations_bare, self.request.steps
        made: list[tuple[str, ...]] = [
            ("full run", f"{steps}", f"{bare:g}", "100%", "-", "-"),
            (
                self.request.label,
                f"{steps}",
                f"{self.report.evaluations:.2f}",
                f"{self.share:.0%}",
                decibels(self.psnr),
                f"{self.report.state_bytes:,} bytes",
            ),
        ]
        if self.rival is not None:
            part = self.rival.steps / steps
            cells = (f"{self.rival.steps}", f"{bare * part:.2f}", f"{part:.0%}", decibels(self.rival.psnr), "-")
            made.append(("bare, fewer steps", *cells))
        return made

    def sentence(self) -> str:
        """What came of it, plainly."""
        spent = f"{self.request.label} computed {self.report.evaluations:.2f} of {self.report.evaluations_bare:g} "
        spent += f"evaluations ({self.share:.0%}) and comes to {decibels(self.psnr)} of the full run."
        if self.rival is None:
            return f"{spent} It saves less than one step, so fewer steps are no rival."
        if self.rival.psnr <= self.psnr:
            verdict = "just as near" if self.rival.psnr == self.psnr else "less near"
        else:
            no_dearer = self.rival.steps <= self.share * self.request.steps
            verdict = "nearer, for no more: fewer steps are the better choice here" if no_dearer else "nearer"
        rival = f"The bare pipeline with {self.rival.steps} steps comes to {decibels(self.rival.psnr)}, {verdict}."
        return f"{spent} {rival}"

    def to_record(self) -> Record:
        """Everything but the pictures; a PSNR of pictures that are the same is None."""
        request, report = self.request, self.report
        return Record(
            task="one drawing, in full, with plugins and with fewer steps",
            task_version="1",
            model=self.model,
            config={
                "asked": dict(self.asked),
                "scheduler": report.scheduler,
                "plugins": {spec: plugin.to_dict() for spec, plugin in request.plugins.items()},
                "steps": request.steps,
                "guidance": request.guidance,
                "seed": request.seed,
            },
            device=self.device,
            n=1,
            result={
                "evaluations": report.evaluations,
                "evaluations_bare": report.evaluations_bare,
                "psnr": _finite(self.psnr),
                "state_bytes": report.state_bytes,
                "fewer_steps": self.rival and {"steps": self.rival.steps, "psnr": _finite(self.rival.psnr)},
                "computed": [
                    {"step": one.step, "denoiser": one.denoiser, "branch": one.branch, "share": one.computed}
                    for one in report.calls
                ],
            },
        )


def draw(painter: Painter, request: Request, watch: Watch) -> Drawn:
    """Draw in full, with the plugins, and with fewer steps at the same cost.

    Raises:
        Stopped: somebody stopped it, which is looked at behind every step; the pipeline is as it was before.
        CapabilityError: a plugin that this pipeline cannot carry.
        InputError: something that it cannot draw.
    """
    done = 0

    def paint(what: str, steps: int) -> Tensor:
        before = done / (3 * request.steps)
        watch.step(before, what)

        def after(step: int) -> None:
            watch.step(min(1.0, before + step / (3 * request.steps)), f"{what}, step {step} of {steps}")

        return painter.paint(steps=steps, guidance=request.guidance, seed=request.seed, after=after)

    full = paint("drawing in full", request.steps)
    done = request.steps
    with attach(painter.pipe, *request.plugins.values()) as handle:
        made = paint(f"drawing with {request.label}", request.steps)
        stats = handle.stats()
    report, done = stats.runs[-1], 2 * request.steps
    fewer = same_cost(report.evaluations / report.evaluations_bare, request.steps)
    rival = None
    if fewer < request.steps:
        picture = paint("drawing with fewer steps", fewer)
        rival = Rival(fewer, likeness(picture, full), shown(picture[0]))
    watch.step(1.0, "done")
    difference = (made[0] - full[0]).abs() / 2
    stronger = amplified(float(difference.max()))
    return Drawn(
        request,
        painter.name,
        painter.asked,
        report,
        str(stats),
        likeness(made, full),
        shown(full[0]),
        shown(made[0]),
        shown(difference * stronger * 2 - 1),
        stronger,
        rival,
        stand_ins(tuple(request.plugins.values())),
        describe_device(painter.device),
    )


def stand_ins(plugins: Sequence[Plugin]) -> tuple[str, ...]:
    """What takes the place of what the plugins do not compute: a word each, in order, none twice."""
    words: list[str] = []
    for plugin in plugins:
        for member in plugin.members if isinstance(plugin, Together) else (plugin,):
            if isinstance(member, StepCache):
                # made of one earlier output alone, or continued from several
                words.append("reused" if member.predictor.depth == 1 else "predicted")
            elif isinstance(member, Guide):
                words.append("left unguided")
            elif isinstance(member, TokenMerger):
                words.append("merged")
    return tuple(dict.fromkeys(words))


def amplified(largest: float) -> int:
    """The power of two by which differences, up to `largest` of 1, can be made stronger without one being cut."""
    factor = 1
    while largest > 0 and 2 * factor * largest <= 1 and factor < _MOST_AMPLIFIED:
        factor *= 2
    return factor


def shown(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in -1 to 1 as it is, or scaled up where it is small, each pixel to a square."""
    longest = max(picture.shape[1:])
    return to_image(picture, longest * (_SIDE // longest) if 2 * longest <= _SIDE else None)


def decibels(psnr: float) -> str:
    """A PSNR in words."""
    return "the same picture" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _finite(psnr: float) -> float | None:
    return psnr if math.isfinite(psnr) else None
