"""Samplers by name: which scheduler, for which models, with which options, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite, SamplerSite
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.resources import Resource
from vlm_eff.models.denoise.sampler import SchedulerView, Solver

NOISE, FLOW = ("epsilon", "v_prediction", "sample"), ("flow",)
# log-SNR below which the cosine schedule of an epsilon model is left out: its first steps divide by almost nothing
_COSINE_CLIP = -5.1


@dataclass(frozen=True)
class Preset:
    """A sampler by name.

    scheduler: class in diffusers, None for the pipeline's own       predicts: models that it fits
    steps:     number of steps it is meant for (the call still says how many are taken)
    weights:   words in the names of weights or adapters that were distilled for it
    consistent: distilled models go to the end of their path in one step
    """

    scheduler: str | None
    predicts: tuple[str, ...]
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    consistent: bool = False


_DPMPP = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_KARRAS = {"use_karras_sigmas": True}
_TRAILING = {"timestep_spacing": "trailing"}
_MULTI, _UNIPC, _EULER = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"
PRESETS: dict[str, Preset] = {
    "present": Preset(None, (*NOISE, *FLOW, "unknown"), 0),
    "ddim": Preset("DDIMScheduler", NOISE, 50),
    "pndm": Preset("PNDMScheduler", NOISE, 50, {"skip_prk_steps": True}),
    "dpmpp_2m": Preset(_MULTI, NOISE, 20, _DPMPP),
    "dpmpp_2m_karras": Preset(_MULTI, NOISE, 20, _DPMPP | _KARRAS),
    "dpmpp_3m": Preset(_MULTI, NOISE, 20, _DPMPP | {"solver_order": 3}),
    "dpmpp_sde": Preset(_MULTI, NOISE, 25, _DPMPP | {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": Preset(_UNIPC, NOISE, 15),
    "unipc_karras": Preset(_UNIPC, NOISE, 15, _KARRAS),
    "euler": Preset(_EULER, NOISE, 30),
    "heun": Preset("HeunDiscreteScheduler", NOISE, 15),
    "ays": Preset(_MULTI, NOISE, 10, _DPMPP),
    "flow_euler": Preset("FlowMatchEulerDiscreteScheduler", FLOW, 28),
    "flow_heun": Preset("FlowMatchHeunDiscreteScheduler", FLOW, 14),
    "flow_unipc": Preset(_UNIPC, FLOW, 20),
    "flow_dpmpp": Preset(_MULTI, FLOW, 20, _DPMPP),
    "lcm": Preset("LCMScheduler", NOISE, 4, weights=("lcm", "latent-consistency"), consistent=True),
    "tcd": Preset("TCDScheduler", NOISE, 4, weights=("tcd", "hyper-sd", "hypersd")),
    "turbo": Preset(_EULER, NOISE, 4, _TRAILING, weights=("turbo",)),
    "lightning": Preset(_EULER, NOISE, 4, _TRAILING, weights=("lightning",)),
}


@part
@dataclass(frozen=True)
class Sampling(DenoisePlugin):
    """Puts another scheduler on the pipeline.

    preset:  name of the sampler                   weights: what the user says the weights are distilled for
    solver:  which one takes aligned steps         table: which aligned steps; None by the pipeline
    options: of the scheduler, over the preset's
    """

    preset: str
    weights: str | None = None
    solver: str | None = None
    table: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for what, value, known in (
            ("sampler", self.preset, tuple(PRESETS)),
            ("solver of aligned steps", self.solver, (None, *PRESETS)),
            ("table of aligned steps", self.table, (None, "sd", "sdxl", "svd")),
        ):
            if value not in known:
                raise ConfigError(explain(f"the {what} {value!r}", ", ".join(map(str, known)), "Choose one of them"))
        if self.preset != "ays" and (self.solver or self.table):
            raise ConfigError(
                explain(f"solver or table for {self.preset!r}", 'both with "ays" alone', "Leave them out")
            )

    @property
    def name(self) -> str:
        return "sampler"

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return (SamplerSite(),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.SCHEDULER})

    def at(self, site: DenoiseSite, view: SchedulerView) -> Any:
        preset = PRESETS[self.preset]
        self._check(preset, view)
        table = self._table(view) if self.preset == "ays" else None
        if table is not None:
            preset = PRESETS[self.solver or ("euler" if view.continuous else "dpmpp_2m")]
        options = preset.options | dict(self.options)
        notes = {"steps_hint": float(PRESETS[self.preset].steps)} if preset.steps else {}
        cosine = view.config.get("beta_schedule") == "squaredcos_cap_v2"
        if preset.scheduler == _MULTI and cosine and view.predicts == "epsilon" and not _clips(view, options):
            options["lambda_min_clipped"] = notes["lambda_min_clipped"] = _COSINE_CLIP
        return Solver(preset.scheduler, options, table, preset.consistent, notes)

    def _check(self, preset: Preset, view: SchedulerView) -> None:
        if view.predicts not in preset.predicts or (view.continuous and self.preset not in ("present", "ays")):
            fits = sorted(name for name, other in PRESETS.items() if view.predicts in other.predicts)
            fits = ["ays", "present"] if view.continuous else fits
            raise CapabilityError(
                explain(
                    f"the sampler {self.preset!r} on {view.pipeline}, whose model predicts {view.predicts} "
                    f"(its scheduler is {view.scheduler})",
                    ", ".join(fits),
                    "Choose one of these",
                )
            )
        told = (self.weights.lower(),) if self.weights else view.names
        if preset.weights and not any(word in name for word in preset.weights for name in told):
            raise CapabilityError(
                explain(
                    f"the sampler {self.preset!r} without weights that were distilled for it: names are {view.names}",
                    f"weights or adapters named like {', '.join(preset.weights)}",
                    f'Load them, or say weights="{preset.weights[0]}" if they have another name',
                )
            )

    def _table(self, view: SchedulerView) -> str:
        if self.table is not None:
            return self.table
        name = view.pipeline
        for word, table in (("StableVideoDiffusion", "svd"), ("StableDiffusionXL", "sdxl"), ("StableDiffusion", "sd")):
            if word in name and "StableDiffusion3" not in name:
                return table
        raise CapabilityError(
            explain(
                f"aligned steps for {name}, for whose model none are known",
                "pipelines of Stable Diffusion, SDXL and SVD",
                'Say table="sd", "sdxl" or "svd" if the model is one of these, or use another sampler',
            )
        )


def _clips(view: SchedulerView, options: dict[str, Any]) -> bool:
    found = options.get("lambda_min_clipped", view.config.get("lambda_min_clipped"))
    return found is not None and float(found) > float("-inf")
