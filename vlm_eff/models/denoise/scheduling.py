"""What a pipeline asks of its scheduler and a scheduler of the model: read before one takes the place of another."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.models.denoise.clock import is_flow

# noise levels that the model was trained on: defaults of these differ between classes, so they are always named
_TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
_SPACINGS = ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")
# a mu such as pipelines derive from the size of an image
_SHIFT = 0.8


def prediction_of(scheduler: Any) -> str:
    """What the model predicts: "flow", "epsilon", "v_prediction", "sample", or "unknown" where nothing says so."""
    if is_flow(scheduler):
        return "flow"
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return "unknown"
    return str(scheduler.config.get("prediction_type", "unknown"))


def continuous(scheduler: Any) -> bool:
    """True where the model is told log(sigma) / 4 for the time (SVD), not a step of its training."""
    return bool(scheduler.config.get("timestep_type") == "continuous")


def build_scheduler(old: Any, name: str | None, config: dict[str, Any]) -> Any:
    """A new scheduler of class `name` for the model that `old` serves; None for old's class.

    Everything that the model was trained with is passed by name: `from_config` alone turns a flow model into one of
    epsilon, and takes the noise levels of the new class where the old one had its own defaults.

    Raises:
        ConfigError: an option that the class does not have, or does not accept.
    """
    import diffusers

    kind = type(old) if name is None else getattr(diffusers, name)
    known = set(inspect.signature(kind.__init__).parameters)
    strange = sorted(set(config) - known)
    if strange:
        raise ConfigError(explain(f"{kind.__name__} has no option {strange}", ", ".join(sorted(known)), "Drop it"))
    named = {key: old.config[key] for key in _TRAINED if key in known and key in old.config}
    if name is not None:
        named |= {f"use_{spacing}": False for spacing in _SPACINGS if f"use_{spacing}" in known}
        named |= _of_flow(old, known) if is_flow(old) else _of_noise(old, known)
    try:
        # the rest of the old configuration would only be ignored, with a warning
        fitting = {key: value for key, value in old.config.items() if key in known or key == "_use_default_values"}
        return kind.from_config(fitting, **(named | config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(explain(f"{kind.__name__}: {error}", "options that go together", "Change them")) from error


def _of_flow(old: Any, known: set[str]) -> dict[str, Any]:
    shift = old.config.get("shift", old.config.get("flow_shift", 1.0))
    found = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift, "shift": shift}
    return {key: value for key, value in found.items() if key in known}


def _of_noise(old: Any, known: set[str]) -> dict[str, Any]:
    found = {"use_flow_sigmas": False} if "use_flow_sigmas" in known else {}
    if "clip_sample" in known:
        # clips to [-1, 1] unless told not to, which latents are not
        found["clip_sample"] = bool(old.config.get("clip_sample", False))
    return found


@dataclass(frozen=True)
class Asking:
    """How a pipeline announces the steps of a run to its scheduler.

    sigmas: it makes noise levels of its own        spared: not for schedulers with `use_flow_sigmas`
    mu:     "always", "dynamic" (for schedulers with `use_dynamic_shifting`) or "never"
    methods: what it uses of the scheduler without looking whether it is there
    """

    sigmas: bool = False
    spared: bool = False
    mu: str = "never"
    methods: frozenset[str] = frozenset()

    def keywords(self, scheduler: Any, steps: int) -> dict[str, Any]:
        """What `set_timesteps` is called with, as the pipeline would."""
        found: dict[str, Any] = {}
        if self.sigmas and not (self.spared and scheduler.config.get("use_flow_sigmas", False)):
            found["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        else:
            found["num_inference_steps"] = steps
        if self.mu == "always" or (self.mu == "dynamic" and scheduler.config.get("use_dynamic_shifting", False)):
            found["mu"] = _SHIFT
        return found

    def announce(self, scheduler: Any, steps: int, pipeline: str) -> None:
        """Announce a run as the pipeline does; `CapabilityError` where the scheduler cannot be used so."""
        keywords, name = self.keywords(scheduler, steps), type(scheduler).__name__
        taken = inspect.signature(scheduler.set_timesteps).parameters
        unknown = sorted(set(keywords) - set(taken))
        try:
            if unknown:
                raise ValueError(f"it takes {', '.join(taken)}")
            scheduler.set_timesteps(**keywords)
        except Exception as error:
            raise CapabilityError(
                explain(
                    f"{name} cannot announce its steps as {pipeline} asks it to, with {sorted(keywords)}: "
                    f"{type(error).__name__} {error}",
                    "schedulers that take these",
                    "Choose another sampler, or change the scheduler's configuration",
                )
            ) from error
        missing = sorted(method for method in self.methods if not hasattr(scheduler, method))
        if missing:
            raise CapabilityError(
                explain(f"{name} lacks {missing}, which {pipeline} uses", "schedulers that have it", "Choose another")
            )


def read_asking(pipe: Any) -> Asking:
    """Read in the pipeline's source how it announces the steps of a run; where there is none, plainly."""
    try:
        whole = _tree(type(pipe))
        call = next(n for n in whole.body[0].body if isinstance(n, ast.FunctionDef) and n.name == "__call__")
    except (OSError, TypeError, StopIteration):
        return Asking()
    sigmas = spared = False
    mu = "never"
    for node in ast.walk(call):
        if isinstance(node, ast.Call) and _name(node.func) in ("retrieve_timesteps", "set_timesteps"):
            given = {keyword.arg for keyword in node.keywords}
            sigmas |= "sigmas" in given and _assigns(call, "sigmas")
            mu = "always" if "mu" in given else mu
        if isinstance(node, ast.If) and "use_flow_sigmas" in ast.unparse(node.test):
            spared |= any(ast.unparse(line) == "sigmas = None" for line in node.body)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("kwargs['mu']"):
            mu = "dynamic" if mu == "never" else mu
    return Asking(sigmas, spared, mu, _used(whole))


def _tree(kind: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(kind)))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _assigns(call: ast.AST, name: str) -> bool:
    return any(
        isinstance(node, ast.Assign)
        and _name(node.targets[0]) == name
        and not (isinstance(node.value, ast.Constant) and node.value.value is None)
        for node in ast.walk(call)
    )


def _used(tree: ast.AST) -> frozenset[str]:
    used, looked = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.scheduler":
            used.add(node.attr)
        if isinstance(node, ast.Call) and _name(node.func) in ("hasattr", "getattr") and len(node.args) > 1:
            looked.add(getattr(node.args[1], "value", ""))
    return frozenset(used - looked)
