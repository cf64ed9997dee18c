"""The command line `vlm-eff`. Results go to stdout, everything else to stderr; exit codes: 0 ok, 1 failure, 2 usage.

Nothing here imports torch before a command runs: `--help` must not wait for it. Start reading at `app.py`.
"""

from __future__ import annotations

from vlm_eff.cli.app import app, main

__all__ = ["app", "main"]
