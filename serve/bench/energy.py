"""Energy counters of the machine: RAPL for processors, NVML for GPUs. Standard library only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter of joules that begins again at ``span`` (0: never)."""

    name: str
    path: Path | None
    gpu: Any = None
    span: float = 0.0


@dataclass(frozen=True, slots=True)
class Meter:
    """Every counter that can be read, and why others cannot."""

    counters: tuple[Counter, ...]
    missing: tuple[str, ...]
    nvml: Any = None

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(counter.name for counter in self.counters)

    def read(self) -> dict[str, float]:
        """Joules since some time ago, by counter; those that fail now are left out."""
        gone = (OSError, ValueError) if self.nvml is None else (OSError, ValueError, self.nvml.NVMLError)
        found = {}
        for counter in self.counters:
            with suppress(*gone):
                found[counter.name] = _joules(counter, self.nvml)
        return found

    def since(self, before: Mapping[str, float]) -> float | None:
        """Joules of all counters since ``before``; None where one of them is missing."""
        after = self.read()
        if not self.counters or any(c.name not in before or c.name not in after for c in self.counters):
            return None
        return sum(_gone(counter, before[counter.name], after[counter.name]) for counter in self.counters)


def meter(powercap: Path = POWERCAP) -> Meter:
    """The counters of this machine."""
    rapl, no_rapl = _rapl(powercap)
    gpus, nvml, no_nvml = _nvml()
    missing = tuple(reason for reason in (no_rapl, no_nvml) if reason)
    return Meter((*rapl, *gpus), missing, nvml)


def _rapl(powercap: Path) -> tuple[list[Counter], str | None]:
    """One counter per processor package; parts of packages, and the whole board, would be counted twice."""
    zones = sorted(powercap.glob("intel-rapl:[0-9]*"))
    packages = [zone for zone in zones if zone.name.count(":") == 1]
    found, refused = [], None
    for zone in packages:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            if not name.startswith("package"):
                continue
            int((zone / "energy_uj").read_text(encoding="ascii"))
            span = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError) as error:
            refused = f"RAPL: {zone.name} cannot be read ({_reason(error)})"
            continue
        found.append(Counter(f"RAPL {name}", zone / "energy_uj", span=span))
    if found or refused:
        return found, refused
    return [], f"RAPL: no processor package under {powercap}"


def _nvml() -> tuple[list[Counter], Any, str | None]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return [], None, "NVML: pynvml is not installed"
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        return [], None, f"NVML: {_reason(error)}"
    found = [Counter(f"NVML GPU {index}", None, handle) for index, handle in enumerate(handles)]
    return found, nvml, None if found else "NVML: no GPU"


def _joules(counter: Counter, nvml: Any) -> float:
    if counter.path is not None:
        return int(counter.path.read_text(encoding="ascii")) / 1e6
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(counter.gpu)) / 1e3


def _gone(counter: Counter, before: float, after: float) -> float:
    return after - before if after >= before else after - before + counter.span


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(
        error
    ).__name__
