"""What a record says of the machine and the packages it was measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "safetensors", "pillow", "numpy", "easy-vqa")


def describe_device(device: torch.device | str) -> str:
    """Return a device in words: the GPU's name, or cores and instruction set of the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def package_versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result, and of `more`."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
