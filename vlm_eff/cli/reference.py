"""`vlm-eff reference build`: build a reference model that is too large to come along."""

from __future__ import annotations

from pathlib import Path

from vlm_eff.cli.output import print_json, print_text, progress
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.reference.smol import smol_folder
from vlm_eff.reference.smol.build import build_smol


def build_reference(folder: Path | None, dtype: str, *, as_json: bool) -> None:
    """Build the model of real weights, once, and say where it is."""
    quiet_libraries()
    with progress("building: reading two packages, merging, writing, reading again"):
        built = build_smol(folder or smol_folder(), dtype)
    if as_json:
        print_json({"model": "smol", "folder": str(built.folder), "built": built.fresh, "bytes": built.bytes})
        return
    name = "smol" if folder is None else str(built.folder)
    print_text(f"{'built' if built.fresh else 'already there'}: {built.folder} ({built.bytes / 1e6:.0f} MB)")
    print_text(f"use it: vlm-eff run --model {name} --image PICTURE --prompt QUESTION")
