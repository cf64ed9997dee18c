"""What all visitors of the page share: one model, one pipeline, and one piece of work at a time."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_eff.core.files import write_file
from vlm_eff.core.plugin import Plugin
from vlm_eff.demo.page.examples import Example, write_examples
from vlm_eff.eval.budgets import Sizes, sizes_of
from vlm_eff.eval.painter import Painter
from vlm_eff.eval.streaming import stopped
from vlm_eff.eval.subject import Subject, open_image
from vlm_eff.models.adapter import adapter_for

_LOOK_EVERY_S = 0.2


@dataclass
class Desk:
    """The model that is asked, the pipelines that draw, and who is at work.

    folder:  where the page writes what visitors may download, and nothing else lies
    painter: makes the pipeline that draws the given classes or prompt, or None where nothing draws
    offered: plugins that whoever started the page offers by name, such as presets of the tuner
    Plugins are attached to the one model, so whoever works holds `working`: one visitor's plugins are never on the
    model while another one asks.
    """

    subject: Subject
    folder: Path
    painter: Callable[[str, tuple[int, ...]], Painter] | None = None
    painter_name: str = ""
    offered: Mapping[str, Plugin] = field(default_factory=dict)
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _stops: dict[str, set[threading.Event]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def family(self) -> str:
        """The model's family, as the method table names it."""
        return adapter_for(self.subject.model).name

    @cached_property
    def examples(self) -> list[Example]:
        """Pictures with questions, for visitors who bring none."""
        return write_examples(self.folder)

    @cached_property
    def sizes(self) -> Sizes:
        """Visual tokens and layers of a question about the first example; whoever asks first must be `working`."""
        first = self.examples[0]
        return sizes_of(self.subject, [open_image(first.path)], first.prompt)

    def keep(self, name: str, found: dict[str, Any]) -> str:
        """Write a result as JSON where its visitor can download it; the file's path."""
        path = self.folder / f"{name}-{uuid.uuid4().hex}.json"
        return str(write_file(path, json.dumps(found, indent=2)))

    @contextmanager
    def working(self, visitor: str, stop: threading.Event) -> Iterator[None]:
        """Have the models for oneself, behind whoever has them now.

        visitor: whose work it is, so that `stop` finds it

        Raises:
            Stopped: `stop` was set while waiting.
        """
        with self._guard:
            self._stops.setdefault(visitor, set()).add(stop)
        try:
            while not self._busy.acquire(timeout=_LOOK_EVERY_S):
                if stop.is_set():
                    raise stopped()
            try:
                yield
            finally:
                self._busy.release()
        finally:
            with self._guard:
                mine = self._stops[visitor]
                mine.discard(stop)
                if not mine:
                    del self._stops[visitor]

    def stop(self, visitor: str) -> int:
        """Stop everything that a visitor has under way or waiting; how many pieces of work that were."""
        with self._guard:
            mine = tuple(self._stops.get(visitor, ()))
        for event in mine:
            event.set()
        return len(mine)
