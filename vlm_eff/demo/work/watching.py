"""How work on the page tells how far it is, and how it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from vlm_eff.eval.streaming import stopped


def _nobody(share: float, text: str) -> None:
    pass


def _deaf(who: str, text: str) -> None:
    pass


@dataclass(frozen=True)
class Watch:
    """Who follows a piece of work.

    progress: called with the share that is done, 0 to 1, and what comes next
    hear:     called with who speaks ("bare", or a label) and the answer so far
    stop:     set by whoever wants the work to end
    """

    progress: Callable[[float, str], None] = _nobody
    hear: Callable[[str, str], None] = _deaf
    stop: threading.Event = field(default_factory=threading.Event)

    def step(self, share: float, text: str) -> None:
        """Say how far the work is.

        Raises:
            Stopped: somebody wants it to end.
        """
        if self.stop.is_set():
            raise stopped()
        self.progress(share, text)
