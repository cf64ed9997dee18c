"""Train register tokens for the bundled model: `python -m vlm_eff.reference.train_registers --output runs/registers`.

The model stays frozen and unmodified: registers are attached as anybody would attach them (`victor`), the loss goes
through the same hooks, and only the register vectors learn. Data are those of `train.py`, many questions a picture.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from transformers import LlavaForConditionalGeneration

from vlm_eff.models.attach import attach
from vlm_eff.tokens import victor

from . import load_reference
from .batches import Batch, BatchMaker
from .checkpoint import checkpoint_in, read_checkpoint, write_checkpoint
from .machine import describe_device, package_versions
from .schedule import Schedule

log = logging.getLogger(__name__)

WEIGHTS, RECORD = "registers.safetensors", "registers.json"
_EVERY = 20


class RegisterTrainer:
    """Registers on a frozen model, their optimiser and the log of the run; `train_step` until `done`."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        maker: BatchMaker,
        schedule: Schedule,
        registers: int,
        layer: int,
        init: str,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.maker = maker
        self.schedule = schedule
        # untrained is what they are: the model is in eval mode because it does not learn
        self.handle = attach(model, victor(registers, layer, init=init, untrained=True, seed=maker.seed))
        self.weights = self.handle.weights["victor"]
        self.optimiser = torch.optim.Adam(self.handle.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict] = []
        self._recent: list[tuple[float, float]] = []

    @property
    def done(self) -> bool:
        """Whether the schedule is over."""
        return self.schedule.progress(self.step, self.seconds) >= 1.0

    def train_step(self) -> tuple[float, float]:
        """Make one step; return its loss and the share of answer tokens that were right."""
        started = time.monotonic()
        rate = self.schedule.rate(self.schedule.progress(self.step, self.seconds), self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss, right = answer_loss(self.model, self.maker.batch(self.step, max_objects=4))
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.monotonic() - started
        self._note(loss.item(), right, rate)
        return loss.item(), right

    def _note(self, loss: float, right: float, rate: float) -> None:
        self._recent.append((loss, right))
        if self.step % _EVERY:
            return
        mean = torch.tensor(self._recent[-_EVERY:]).mean(0).tolist()
        self._recent.clear()
        row = {"step": self.step, "minutes": round(self.seconds / 60, 2), "rate": float(f"{rate:.3g}")}
        self.curve.append({**row, "loss": round(mean[0], 4), "token_accuracy": round(mean[1], 4)})
        log.info("%s", json.dumps(self.curve[-1]))

    def save(self, path: Path) -> None:
        """Write the whole state; an interrupted write leaves the earlier checkpoint."""
        state = {
            "weights": self.weights.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step,
            "seconds": self.seconds, "curve": json.dumps(self.curve), "recent": self._recent,
        }  # fmt: skip
        write_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = read_checkpoint(path)
        self.weights.load_state_dict(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.curve, self._recent = json.loads(state["curve"]), [tuple(pair) for pair in state["recent"]]

    def record(self, settings: dict) -> dict:
        """What was done, for the file beside the weights."""
        every = max(1, len(self.curve) // 24)
        return {
            "settings": settings,
            "model": "bundled, frozen",
            "parameters": sum(parameter.numel() for parameter in self.handle.parameters()),
            "steps": self.step,
            "pictures_seen": self.step * self.maker.batch_size,
            "minutes": round(self.seconds / 60, 1),
            "device": describe_device(self.model.device),
            "threads": torch.get_num_threads(),
            "packages": package_versions(),
            "curve": self.curve[::every],
        }


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, float]:
    """Mean cross-entropy over answer tokens by the model's own forward, plugins in force, and the share right."""
    logits = model(
        input_ids=batch.tokens,
        pixel_values=batch.pixels,
        attention_mask=batch.attention_mask(),
        position_ids=batch.positions,
        use_cache=False,
    ).logits
    due = batch.targets >= 0
    loss = F.cross_entropy(logits[due], batch.targets[due])
    return loss, (logits[due].argmax(-1) == batch.targets[due]).float().mean().item()


def train_registers(
    output: Annotated[Path, typer.Option(help="folder for checkpoint, weights and record")],
    registers: Annotated[int, typer.Option(help="register tokens")] = 18,
    layer: Annotated[int, typer.Option(help="decoder layer at whose input the visual tokens go")] = 3,
    init: Annotated[str, typer.Option(help="normal or pooled")] = "normal",
    minutes: Annotated[float | None, typer.Option(help="length of the schedule in minutes")] = None,
    steps: Annotated[int | None, typer.Option(help="length of the schedule in steps; exactly repeatable")] = None,
    batch_size: Annotated[int, typer.Option(help="pictures a step")] = 8,
    learning_rate: Annotated[float, typer.Option(help="peak learning rate")] = 0.1,
    easy_share: Annotated[float, typer.Option(help="share of easy-VQA pictures")] = 0.3,
    seed: Annotated[int, typer.Option(help="seed of registers and data")] = 1,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in the folder")] = False,
    checkpoint_minutes: Annotated[float, typer.Option(help="minutes between checkpoints")] = 2.0,
) -> None:
    """Train, and write OUTPUT/registers.safetensors and OUTPUT/registers.json."""
    settings = {
        "registers": registers, "layer": layer, "init": init, "minutes": minutes, "steps": steps, "seed": seed,
        "batch_size": batch_size, "learning_rate": learning_rate, "easy_share": easy_share,
    }  # fmt: skip
    checkpoint = checkpoint_in(output, resume=resume, minutes=minutes, steps=steps)
    model, processor = load_reference()
    maker = BatchMaker(processor, batch_size, seed, easy_share)
    trainer = RegisterTrainer(model, maker, Schedule(minutes, steps, learning_rate, 0.0), registers, layer, init)
    if resume:
        trainer.load(checkpoint)
    last = time.monotonic()
    while not trainer.done:
        trainer.train_step()
        if time.monotonic() - last > 60 * checkpoint_minutes:
            trainer.save(checkpoint)
            last = time.monotonic()
    trainer.save(checkpoint)
    trainer.weights.save(output / WEIGHTS)
    text = json.dumps(trainer.record(settings), indent=2)
    (output / RECORD).write_text(text + "\n", encoding="utf-8")
    trainer.handle.detach()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(train_registers)
