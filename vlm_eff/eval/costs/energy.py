"""Energy of a call on a GPU, by the counter of the board."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch

# the counter moves every 20 to 100 ms
SECONDS = 2.0


def energy_of(
    run: Callable[[], object],
    device: torch.device,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float | None, str | None]:
    """Joules of one run, or None and why not.

    The difference of NVML's total-energy counter over at least `seconds` of repeated runs, divided by their number: the
    whole board's, so that nobody else may work on it. Needs the extra `energy`.
    """
    counter, reason = _counter(device)
    if counter is None:
        return None, reason
    run()
    torch.cuda.synchronize(device)
    runs, started, before = 0, clock(), counter()
    while clock() - started < seconds:
        run()
        torch.cuda.synchronize(device)
        runs += 1
    return (counter() - before) / 1e3 / runs, None


def board(device: torch.device) -> dict[str, Any]:
    """Driver, clocks, power and temperature of a GPU as NVML tells; {} where it does not."""
    found = _open(device)
    if isinstance(found, str):
        return {}
    nvml, handle = found
    asked: dict[str, Callable[[], Any]] = {
        "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
        "clock_sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "clock_memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    made = {}
    for name, ask in asked.items():
        try:
            made[name] = ask()
        except nvml.NVMLError:
            made[name] = None
    return made


def _counter(device: torch.device) -> tuple[Callable[[], int] | None, str | None]:
    found = _open(device)
    if isinstance(found, str):
        return None, found
    nvml, handle = found
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return None, f"this board counts no energy ({error})"
    return lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), None


def _open(device: torch.device) -> tuple[Any, Any] | str:
    """NVML and the handle of a GPU, or why there is none."""
    if device.type != "cuda":
        return f"no energy counter for a {device.type} device"
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return "nvidia-ml-py is not installed (the extra `energy`)"
    try:
        nvml.nvmlInit()
        properties: Any = torch.cuda.get_device_properties(device)
        uuid = f"GPU-{properties.uuid}"
        return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (nvml.NVMLError, AttributeError) as error:
        return f"NVML cannot be used ({error})"
