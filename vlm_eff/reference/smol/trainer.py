"""One training step of the real-weights model, its checks and its state; tower and language model stay as they are."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration

from ..checkpoint import read_checkpoint, write_checkpoint
from ..pointing import pointing_loss
from . import low_rank
from .packing import RowMaker, Rows
from .pointing import LAYER
from .warm_start import visual_features

_AVERAGE_DECAY = 0.99
_POINTING_WEIGHT = 0.3
_CHECK_STEPS = 3


class Trainer:
    """Trains a projector and low-rank changes, AdamW on packed rows; the averaged weights are what is shipped.

    steps: length of the schedule; the rate climbs over `warm_up` steps, stays, and falls to zero over the last quarter
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, maker: RowMaker, *, steps: int, rate: float, rank: int, seed: int,
        warm_up: int = 20,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.model, self.maker = model, maker
        self.steps, self.rate, self.warm_up = steps, rate, warm_up
        model.requires_grad_(False)
        self.decoder = model.model.language_model
        self.projector = model.model.multi_modal_projector.requires_grad_(True)
        factors = low_rank.insert(self.decoder, rank)
        self.parameters = [*self.projector.parameters(), *factors]
        self.average = [p.detach().clone() for p in self.parameters]
        groups = [
            {"params": list(self.projector.parameters()), "weight_decay": 0.0, "scale": 0.5},
            {"params": factors, "weight_decay": 0.01, "scale": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.step = self.questions = 0
        self.seconds = 0.0

    @property
    def done(self) -> bool:
        """True when the schedule is over."""
        return self.step >= self.steps

    def compile(self) -> None:
        """Fuse each layer by `torch.compile`, which leaves weights and their names alone."""
        for layer in self.decoder.layers:
            layer.compile()

    def rate_now(self) -> float:
        """Return the learning rate of the coming step."""
        left = (self.steps - self.step) / max(1, self.steps // 4)
        return self.rate * min(1.0, (self.step + 1) / self.warm_up, left)

    def train_step(self) -> dict:
        """Make one step and return its record."""
        started = time.monotonic()
        rows = self.maker.batch(self.step, 2 if self.step < self.steps // 10 else 4)
        logits, wanted, pointing = self.answers(rows)
        loss = F.cross_entropy(logits, wanted)
        (loss + _POINTING_WEIGHT * pointing).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.rate_now()
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        decay = min(_AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1
        self.questions += len(rows.families)
        self.seconds += time.monotonic() - started
        right = (logits.argmax(-1) == wanted).float().mean().item()
        return {
            "step": self.step, "loss": round(loss.item(), 4), "right": round(right, 4),
            "pointing": round(pointing.item(), 4),
            "norm": round(norm.item(), 3),
            "rate": rate, "questions": self.questions, "seconds": round(self.seconds, 1),
        }  # fmt: skip

    def answers(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits and wanted tokens wherever an answer token is due, [N, vocabulary] and [N], and pointing loss.

        Walks the decoder's layers itself, because the input of one layer is needed on the way.
        """
        visual = self.projector(visual_features(self.model, rows.pixels))
        words = self.decoder.embed_tokens(rows.tokens)
        first, last = len(self.maker.start) - visual.shape[1], len(self.maker.start)
        hidden = torch.cat([words[:, :first], visual, words[:, last:]], dim=1)
        mask, rotary = rows.mask(), self.decoder.rotary_emb(hidden, rows.positions)
        pointing = hidden.new_zeros(())
        for number, layer in enumerate(self.decoder.layers):
            if number == min(LAYER, len(self.decoder.layers) - 1):
                pointing = pointing_loss(layer, hidden, rotary, rows.places, rows.looks, last)
            hidden = layer(
                hidden, attention_mask=mask, position_ids=rows.positions, position_embeddings=rotary, use_cache=False
            )
        due = rows.targets >= 0
        return self.model.lm_head(self.decoder.norm(hidden[due])), rows.targets[due], pointing

    @torch.no_grad()
    def check(self, batches: int = _CHECK_STEPS) -> dict:
        """Return the share of right answers of the averaged weights on validation scenes, all tokens of an answer."""
        live = [p.detach().clone() for p in self.parameters]
        self.use(self.average)
        right, total = Counter(), Counter()
        for number in range(batches):
            rows = self.maker.validation(number)
            logits, wanted, _ = self.answers(rows)
            for family, hit in zip(rows.families, _turn_hits(rows, logits.argmax(-1) == wanted), strict=True):
                right[family] += hit
                total[family] += 1
        self.use(live)
        by_family = {name: round(right[name] / total[name], 3) for name in sorted(total)}
        share = round(right.total() / total.total(), 4)
        return {"step": self.step, "validation": by_family, "all": share, "asked": total.total()}

    @torch.no_grad()
    def use(self, values: list[torch.Tensor]) -> None:
        """Put values into the trained parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def save(self, path: Path) -> None:
        """Write the whole state; an interrupted write leaves the earlier checkpoint."""
        state = {
            "parameters": [p.detach() for p in self.parameters], "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step, "questions": self.questions, "seconds": self.seconds,
        }  # fmt: skip
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = read_checkpoint(path)
        self.use(state["parameters"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        for name in ("step", "questions", "seconds"):
            setattr(self, name, state[name])


def _turn_hits(rows: Rows, hits: torch.Tensor) -> list[bool]:
    """Return for every question whether all its tokens are right, row by row."""
    turns: dict[tuple[int, int], bool] = {}
    for (row, place), hit in zip((rows.targets >= 0).nonzero().tolist(), hits.tolist(), strict=True):
        key = (row, int(rows.turns[row, place]))
        turns[key] = turns.get(key, True) and hit
    return [turns[key] for key in sorted(turns)]
