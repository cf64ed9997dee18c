"""Which methods go on a vision-language model, found by attaching each to its outline: its parts without weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import vlm_eff
from vlm_eff.core.errors import ConfigError, VlmEffError
from vlm_eff.core.handle import HandleNeverFired


@dataclass(frozen=True)
class Fit:
    """Whether a method can be attached to a model with its defaults; `why_not` is the error's sentence, or None.

    needs_more: the method wants an argument or weights first, whatever the model
    """

    method: str
    room: str
    why_not: str | None
    needs_more: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def fits(model: Any) -> Iterator[Fit]:
    """Attach every method by itself to `model`, which needs no weights, and take it off again.

    Methods of the room `diffusion` act on pipelines and are left out.
    """
    chosen = [(name, method) for name, method in vlm_eff.methods().items() if method.room != "diffusion"]
    for name, method in sorted(chosen, key=lambda one: (one[1].room, one[0])):
        try:
            made = vlm_eff.plugin(name)
        except ConfigError as error:
            yield Fit(name, method.room, str(error), needs_more=True)
            continue
        yield Fit(name, method.room, why_not(model, made))


def why_not(model: Any, plugin: Any) -> str | None:
    """The sentence with which `attach` refuses a plugin on this model; None where it takes it."""
    with warnings.catch_warnings():
        # nothing is asked of the model here
        warnings.simplefilter("ignore", HandleNeverFired)
        try:
            with vlm_eff.attach(model, plugin):
                return None
        except VlmEffError as error:
            return str(error)
        except Exception as error:
            # a mistake of the method's own package: to be named, and no reason to leave the others unlooked at
            return f"{type(error).__name__}: {error}"
