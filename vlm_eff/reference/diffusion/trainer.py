"""The training loop's state: denoiser, optimisers, averaged weights, schedule, checkpoints."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..checkpoint import read_checkpoint, write_checkpoint
from ..schedule import Schedule
from .noise import noise_levels
from .shapes import NULL_CLASS, shape_batch, stream

_AVERAGE_DECAY = 0.995
_NULL_SHARE = 0.1
_WEIGHT_DECAY = 0.01


def matrices_of(denoiser: nn.Module) -> list[str]:
    """Return the names of the matrices inside transformer blocks, which Muon may update."""
    return [
        name
        for name, parameter in denoiser.named_parameters()
        if parameter.ndim == 2 and "transformer_blocks." in name and ".emb." not in name
    ]


def build_optimisers(denoiser: nn.Module, rate: float, name: str) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything, or Muon for the matrices inside transformer blocks and AdamW for the rest."""
    if name not in ("muon", "adamw"):
        raise ValueError(f"got optimiser {name!r}; accepted are muon, adamw; use one of them")
    chosen = set(matrices_of(denoiser)) if name == "muon" else set()
    named = list(denoiser.named_parameters())
    rest = [parameter for key, parameter in named if key not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True)
    ]
    if chosen:
        matrices = [parameter for key, parameter in named if key in chosen]
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
        found.append(muon)
    return found


class DiffusionTrainer:
    """Everything that one run needs; `train_step` until `done`.

    The network learns the velocity v = a eps - s x0 of the noisy picture a x0 + s eps (Salimans and Ho 2022, appendix
    D); one class in ten is replaced by the empty one, so that guidance works (Ho and Salimans 2022, algorithm 1).
    """

    def __init__(
        self, denoiser: nn.Module, schedule: Schedule, batch_size: int, seed: int, optimiser: str = "adamw"
    ) -> None:
        # nothing in these networks but the pipelines' own label dropout behaves differently in training
        self.denoiser = denoiser.eval()
        self.schedule = schedule
        self.batch_size = batch_size
        self.seed = seed
        self.optimisers = build_optimisers(denoiser, schedule.learning_rate, optimiser)
        self.average = [p.detach().clone() for p in denoiser.parameters()]
        self.signal, self.noise = noise_levels()
        self.step = self.pictures = 0
        self.seconds = 0.0

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self.schedule.progress(self.step, self.seconds) >= 1.0

    def train_step(self) -> dict:
        """Make one step and return its record; seconds are those of the processor, not of the clock."""
        started = time.process_time()
        rate = self.schedule.rate(self.schedule.progress(self.step, self.seconds), self.step)
        loss = self._loss(self.step + 1_000_000 * self.seed, "train", self.batch_size)
        loss.backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.pictures += self.batch_size
        self._update_average()
        self.seconds += time.process_time() - started
        return {
            "step": self.step, "minutes": round(self.seconds / 60, 3), "pictures": self.pictures,
            "rate": rate, "loss": loss.item(),
        }  # fmt: skip

    def _loss(self, number: int, split: str, size: int) -> torch.Tensor:
        pictures, labels = shape_batch(number, size, split)
        # a stream of its own, so that the pictures do not depend on what training does with them
        random = stream(-number - 1, split)
        labels = torch.where(torch.rand(size, generator=random) < _NULL_SHARE, NULL_CLASS, labels)
        timesteps = torch.randint(len(self.signal), (size,), generator=random)
        noise = torch.randn(pictures.shape, generator=random)
        a, s = self.signal[timesteps].view(-1, 1, 1, 1), self.noise[timesteps].view(-1, 1, 1, 1)
        predicted = self.denoiser(a * pictures + s * noise, timesteps, labels)
        return F.mse_loss(predicted, a * noise - s * pictures)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(_AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.denoiser.parameters()], 1 - decay)

    @torch.no_grad()
    def check(self) -> dict:
        """Return the loss of the averaged weights on 256 held-out pictures, always the same."""
        live = [p.detach().clone() for p in self.denoiser.parameters()]
        self.use_average()
        loss = self._loss(0, "validation", 256).item()
        for parameter, value in zip(self.denoiser.parameters(), live, strict=True):
            parameter.copy_(value)
        return {"step": self.step, "validation": round(loss, 5)}

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the denoiser."""
        for parameter, value in zip(self.denoiser.parameters(), self.average, strict=True):
            parameter.copy_(value)

    def save(self, path: Path) -> None:
        """Write the whole state; an interrupted write leaves the earlier checkpoint."""
        state = {
            "model": self.denoiser.state_dict(), "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step, "pictures": self.pictures, "seconds": self.seconds,
        }  # fmt: skip
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = read_checkpoint(path)
        self.denoiser.load_state_dict(state["model"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in ("step", "pictures", "seconds"):
            setattr(self, name, state[name])
