"""Weights of plugins: made when they are attached, kept on the handle, saved and loaded on their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin

FORMAT = "vlm_eff.learned/1"


class LearnedWeights(nn.Module):
    """Parameters of one plugin for one model; `facts` say what they fit and stand in the file beside them."""

    def __init__(self, **facts: str | int) -> None:
        super().__init__()
        self.facts = {name: str(value) for name, value in facts.items()}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; an interrupted write leaves the earlier one."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        tensors = {name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}
        save_file(tensors, part, metadata={"format": FORMAT, **self.facts})
        part.replace(path)

    def load(self, path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing or no such file, or was made for something else.
        """
        if not Path(path).is_file():
            raise _unfit(f"weights={str(path)!r}, and there is no such file")
        try:
            with safe_open(path, "pt") as stored:
                facts = dict(stored.metadata() or {})
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _unfit(f"weights={str(path)!r}, which is no safetensors file ({error})") from None
        if facts.pop("format", None) != FORMAT:
            raise _unfit(f"weights={str(path)!r}, which no plugin of this version wrote")
        wrong = [
            f"{name} {facts.get(name)} instead of {value}"
            for name, value in self.facts.items()
            if facts.get(name) != value
        ]
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        if not wrong and shapes != {name: value.shape for name, value in tensors.items()}:
            wrong = ["tensors of other shapes"]
        if wrong:
            raise _unfit(f"weights={str(path)!r}, which were made for {', '.join(wrong)}")
        self.load_state_dict(tensors)


def _unfit(got: str) -> ConfigError:
    return ConfigError(
        explain(got, "a file written by `save` for this method, setting and model", "Check the path and the arguments")
    )


def check_trained(plugin: str, weights: str | None, untrained: bool, context: BindContext) -> None:
    """Raise `CapabilityError` for a plugin that would decide without having learned anything."""
    if weights is None and not untrained and not context.training:
        raise CapabilityError(
            explain(
                f"{plugin} without weights on a model in eval mode: it knows nothing before training",
                "weights=PATH, a model in training mode, or untrained=True",
                "Train it (docs/registers.md); to train with the model in eval mode say untrained=True",
            )
        )


def make_learned(plugins: Sequence[Plugin], context: BindContext, device: torch.device) -> dict[str, Any]:
    """The weights of every plugin that has any, by plugin name, on `device` in float32."""
    made = {plugin.name: plugin.make_weights(context) for plugin in plugins}
    return {name: weights.to(device) for name, weights in made.items() if weights is not None}
