"""The training half of `training_record.json`: settings, curve, machine, versions."""

from __future__ import annotations

import json
from pathlib import Path

from .machine import describe_device, package_versions
from .trainer import Trainer

RECORD_NAME = "training_record.json"
_CURVE_POINTS = 24


def training_record(trainer: Trainer, curve: Path) -> dict:
    """Return with which settings a run was started and resumed, how long it took, and a summary of the logged curve."""
    rows = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    steps = [row for row in rows if "images" in row]
    starts = [row for row in rows if "started_at_step" in row]
    checks = [row for row in rows if row.get("validation")]
    every = max(1, len(steps) // _CURVE_POINTS)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in _parts(trainer).items()}
    return {
        "training": {
            "starts": starts,
            "parameters": sizes,
            "steps": trainer.step,
            "images_seen": trainer.images,
            "minutes": round(trainer.seconds / 60, 1),
            "images_per_second": round(trainer.images / max(trainer.seconds, 1e-9), 1),
            "device": describe_device(trainer.device),
            "packages": package_versions(),
            "curve": [{**row, "rate": float(f"{row['rate']:.3g}")} for row in _rounded(steps[::every])],
            "validation_curve": checks,
        }
    }


def write_training_record(trainer: Trainer, curve: Path, folder: Path) -> Path:
    """Write the record beside the weights; `python -m vlm_eff.reference.evaluate` adds what was reached."""
    path = folder / RECORD_NAME
    path.write_text(json.dumps(training_record(trainer, curve), indent=2) + "\n", encoding="utf-8")
    return path


def _parts(trainer: Trainer) -> dict:
    core = trainer.model.model
    return {
        "all": trainer.model,
        "vision_tower": core.vision_tower,
        "projector": core.multi_modal_projector,
        "decoder": core.language_model,
        "patch_head_not_shipped": trainer.head,
    }


def _rounded(rows: list[dict]) -> list[dict]:
    return [
        {name: round(value, 4) if isinstance(value, float) and name != "rate" else value for name, value in row.items()}
        for row in rows
    ]
