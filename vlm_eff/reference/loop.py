"""The loop of a training run: steps, a line of its curve now and then, checkpoints with a check by the clock."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Protocol, TextIO

log = logging.getLogger(__name__)


class Trainable(Protocol):
    """What the loop asks of a trainer."""

    step: int

    @property
    def done(self) -> bool:
        """The schedule is over."""

    def train_step(self) -> dict:
        """One step; what the curve says of it."""

    def check(self) -> dict:
        """What held-out examples say."""

    def save(self, path: Path) -> None:
        """Everything that resuming needs."""


def run_training(trainer: Trainable, checkpoint: Path, curve: TextIO, *, every: int, minutes: float) -> None:
    """Train to the end of the schedule; `every` steps a line, `minutes` between checkpoints."""
    last = time.monotonic()
    while not trainer.done:
        record = trainer.train_step()
        if trainer.step % every == 0:
            note(curve, record)
        if time.monotonic() - last > 60 * minutes:
            trainer.save(checkpoint)
            note(curve, trainer.check())
            last = time.monotonic()
    trainer.save(checkpoint)
    note(curve, trainer.check())


def note(curve: TextIO, record: dict) -> None:
    """Add one line to a curve, on disk at once."""
    curve.write(json.dumps(record) + "\n")
    curve.flush()
    log.info("%s", json.dumps(record))
