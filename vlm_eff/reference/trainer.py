"""The training loop's state: model, patch head, optimisers, averaged weights, schedule, checkpoints."""

from __future__ import annotations

import copy
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration

from .batches import PREFIX_LENGTH, Batch, BatchMaker
from .checkpoint import read_checkpoint, write_checkpoint
from .dense import DenseHead
from .model import VISUAL_TOKENS
from .naming import naming_loss, word_ids
from .pointing import pointing_layer, pointing_loss
from .schedule import Schedule, build_optimisers

_DENSE_WEIGHT, _WHOLE_WEIGHT, _NAMING_WEIGHT, _POINTING_WEIGHT = 0.3, 0.1, 2.0, 0.3
_AVERAGE_DECAY = 0.98
_CHECK_STEPS = 3


class Trainer:
    """Everything that one run needs; `train_step` until `done`."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        maker: BatchMaker,
        schedule: Schedule,
        device: torch.device,
        optimiser: str = "muon",
    ) -> None:
        self.model = model.to(device).train()
        self.maker = maker
        self.schedule = schedule
        self.device = device
        self._word_ids = word_ids(maker.tokenizer)
        self.head = DenseHead(model.config.vision_config.hidden_size).to(device)
        self.average = [p.detach().clone() for p in model.parameters()]
        self.optimisers = build_optimisers(model, self.head, schedule.learning_rate, optimiser)
        self.step = self.stage_step = self.images = 0
        self.answering = False
        self.seconds = 0.0
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    @property
    def progress(self) -> float:
        """Done fraction of the schedule."""
        return self.schedule.progress(self.step, self.seconds)

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self.progress >= 1.0

    def compile(self) -> None:
        """Fuse each block and layer by `torch.compile`, which leaves weights and their names alone."""
        for name, module in self.model.named_modules():
            parent, _, last = name.rpartition(".")
            if parent.endswith("layers") and last.isdigit():
                module.compile()

    def train_step(self) -> dict:
        """Make one step and return its record."""
        started = time.monotonic()
        progress = self.progress
        answering = progress >= self.schedule.tower_share
        if answering and not self.answering:
            self.stage_step = 0
        self.answering = answering
        rate = self.schedule.rate(progress, self.stage_step)
        number = self.step * self.workers + self.rank
        batch = self.maker.batch(number, self.schedule.max_objects(progress)).to(self.device)
        record, loss = self._losses(batch, answering)
        loss.backward()
        self._share_gradients()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.head.parameters()], 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        self.stage_step += 1
        images = len(batch.pixels) * self.workers
        self.images += images
        spent = self._mean_over_workers(time.monotonic() - started)
        self.seconds += spent
        return {
            "step": self.step, "minutes": round(self.seconds / 60, 3), "images": self.images, "rate": rate,
            **record, "images_per_second": round(images / spent, 1),
        }  # fmt: skip

    def _share_gradients(self) -> None:
        """Replace the gradients by their mean over all workers, in one exchange."""
        if self.workers == 1:
            return
        gradients = [p.grad for p in [*self.model.parameters(), *self.head.parameters()] if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.workers
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _mean_over_workers(self, value: float) -> float:
        """Return the mean of a number, so that all workers keep the same schedule."""
        if self.workers == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared)
        return shared.item() / self.workers

    def _losses(self, batch: Batch, answering: bool) -> tuple[dict, torch.Tensor]:
        features = self.model.model.vision_tower(pixel_values=batch.pixels).last_hidden_state
        dense, whole = self.head(features, batch.patch_target, batch.global_target)
        if not answering:
            return {"dense": dense.item(), "whole": whole.item()}, dense + _WHOLE_WEIGHT * whole
        visual = self.model.model.multi_modal_projector(features[:, 1:])
        naming = naming_loss(visual, self.model.lm_head.weight, self._word_ids, batch.naming_target)
        logits, wanted, pointing = self._answers(visual, batch)
        answer = F.cross_entropy(logits, wanted)
        loss = answer + _DENSE_WEIGHT * dense + _WHOLE_WEIGHT * whole + _NAMING_WEIGHT * naming
        loss = loss + _POINTING_WEIGHT * pointing
        right = (logits.argmax(-1) == wanted).float().mean()
        parts = {
            "answer": answer,
            "right": right,
            "dense": dense,
            "whole": whole,
            "naming": naming,
            "pointing": pointing,
        }
        return {name: value.item() for name, value in parts.items()}, loss

    def _answers(self, visual: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits and wanted tokens wherever an answer token is due, [N, vocabulary] and [N], and pointing loss.

        Walks the decoder's layers itself, because the input of one layer is needed on the way.
        """
        decoder = self.model.model.language_model
        words = decoder.embed_tokens(batch.tokens)
        start = PREFIX_LENGTH - VISUAL_TOKENS
        hidden = torch.cat([words[:, :start], visual, words[:, PREFIX_LENGTH:]], dim=1)
        mask, rotary = batch.attention_mask(), decoder.rotary_emb(hidden, batch.positions)
        pointing = hidden.new_zeros(())
        for index, layer in enumerate(decoder.layers):
            if index == pointing_layer(len(decoder.layers)):
                looking = (batch.pointing_places, batch.pointing_target)
                pointing = pointing_loss(layer, hidden, rotary, *looking, PREFIX_LENGTH)
            hidden = layer(
                hidden, attention_mask=mask, position_ids=batch.positions, position_embeddings=rotary, use_cache=False
            )
        due = batch.targets >= 0
        return self.model.lm_head(decoder.norm(hidden[due])), batch.targets[due], pointing

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(_AVERAGE_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - decay)

    @torch.no_grad()
    def check(self) -> dict:
        """Return token accuracy of the averaged weights on validation scenes, by family; no generation, so quick."""
        if not self.answering:
            return {"step": self.step, "validation": None}
        live = [p.detach().clone() for p in self.model.parameters()]
        self._set(self.average)
        right, total = Counter(), Counter()
        for number in range(_CHECK_STEPS):
            batch, families = self.maker.validation(number)
            batch = batch.to(self.device)
            features = self.model.model.vision_tower(pixel_values=batch.pixels).last_hidden_state
            logits, wanted, _ = self._answers(self.model.model.multi_modal_projector(features[:, 1:]), batch)
            hits = (logits.argmax(-1) == wanted).tolist()
            for family, hit in zip(families, _turn_hits(batch, hits), strict=True):
                right[family] += hit
                total[family] += 1
        self._set(live)
        by_family = {name: round(right[name] / total[name], 3) for name in sorted(total)}
        return {"step": self.step, "validation": by_family, "all": round(right.total() / total.total(), 4)}

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.model.parameters(), values, strict=True):
            parameter.copy_(value)

    def averaged_model(self) -> LlavaForConditionalGeneration:
        """Return a copy of the model with the averaged weights."""
        # a copy of the live model would carry its compiled layers along
        model = type(self.model)(copy.deepcopy(self.model.config))
        model.generation_config = copy.deepcopy(self.model.generation_config)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.average, strict=True):
                parameter.copy_(value)
        return model.eval()

    def save(self, path: Path) -> None:
        """Write the whole state; an interrupted write leaves the earlier checkpoint."""
        state = {
            "model": self.model.state_dict(), "head": self.head.state_dict(), "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step, "stage_step": self.stage_step, "images": self.images,
            "answering": self.answering, "seconds": self.seconds,
        }  # fmt: skip
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = read_checkpoint(path, self.device)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name in ("step", "stage_step", "images", "answering", "seconds"):
            setattr(self, name, state[name])


def _turn_hits(batch: Batch, hits: list[bool]) -> list[bool]:
    """Return for every question whether all its tokens are right, from hits in row order."""
    due = (batch.targets >= 0).nonzero().tolist()
    turns: dict[tuple[int, int], bool] = {}
    for (row, place), hit in zip(due, hits, strict=True):
        key = (row, int(batch.turns[row, place]))
        turns[key] = turns.get(key, True) and hit
    return [turns[key] for key in sorted(turns)]
