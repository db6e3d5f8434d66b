"""Memory of this process, as the system has it. Standard library only: processes without torch ask, too."""

from __future__ import annotations

from pathlib import Path


def memory() -> tuple[int, int]:
    """Resident bytes now and at their highest; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    now, peak = (int(found.get(key, "0").split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak
