"""Run as a script: everything that needs more than one process, with one start of Python for all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests.scale import parts, spread_heads


def main(folder: Path) -> None:
    torch.multiprocessing.start_processes(spread_heads.work, (folder,), spread_heads.SIZE, start_method="fork")
    (folder / "parts.json").write_text(json.dumps(parts.killed_and_resumed(folder)))
    # the other device is known to the whole process: last
    from tests.scale import two_places

    (folder / "places.json").write_text(json.dumps(two_places.compare()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
