"""What a time depends on besides the model: without it, times of two days cannot be told apart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import vlm_eff
from vlm_eff.eval.costs.energy import board
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.machine import describe_device, package_versions


def fingerprint(subject: Subject) -> dict[str, Any]:
    """Device, driver, packages, attention, dtype, threads, load and commit, as far as they can be known."""
    device = subject.device
    cuda = device.type == "cuda"
    return {
        "device": describe_device(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "board": board(device),
        "packages": package_versions() | {"vlm-eff": vlm_eff.__version__},
        "attention": attention_of(subject),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "commit": commit_of(Path(vlm_eff.__file__).parents[1]),
    }


def attention_of(subject: Subject) -> dict[str, str]:
    """The attention function of each part of the model; plugins that only look on do not show."""
    config = subject.model.config
    parts = {"text": config.get_text_config(), "vision": getattr(config, "vision_config", None)}
    made = {}
    for name, part in parts.items():
        chosen = getattr(part, "_attn_implementation", None)
        if chosen is not None:
            made[name] = str(getattr(chosen, "base", chosen))
    return made


def commit_of(folder: Path) -> str | None:
    """The commit that a checkout of the package stands at; None for an installed package."""
    git = folder / ".git"
    try:
        if git.is_file():
            git = (folder / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        roots = [git, (git / shared.read_text(encoding="utf-8").strip()).resolve()] if shared.is_file() else [git]
        for root in roots:
            if (root / name).is_file():
                return (root / name).read_text(encoding="utf-8").strip()
            packed = root / "packed-refs"
            lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
            found = [line.split()[0] for line in lines if line.endswith(f" {name}")]
            if found:
                return found[0]
    except OSError:
        pass
    return None
