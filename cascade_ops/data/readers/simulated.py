"""The simulator as a dataset, for use without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cascade_ops.data.readers.base import DATASETS, DatasetEntry
from cascade_ops.data.simulate import INFO, simulate_dataset
from cascade_ops.data.types import Dataset
from cascade_ops.errors import UsageError


def load(root: Path, **options: Any) -> Dataset:
    """``simulate_dataset(**options)``; ``root`` is not used."""
    del root
    try:
        return simulate_dataset(**options)
    except TypeError as error:
        raise UsageError(
            f"simulated data: {error}. Known options: seed, seconds, snr_db, labels, loads, fs_hz."
        ) from None


DATASETS.add(
    "simulated",
    DatasetEntry(info=INFO, find=lambda root: None, load=load, obtain="bearing mechanics, made on the spot"),
)
