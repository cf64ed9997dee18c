"""`python -m vlm_eff.demo`: the tour."""

from __future__ import annotations

import typer

from vlm_eff.demo.tour.command import demo

if __name__ == "__main__":
    typer.run(demo)
