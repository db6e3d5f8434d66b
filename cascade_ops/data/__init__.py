"""Vibration data: recordings, readers, simulator, splits without leakage, physics descriptors.

dataset = open_dataset("auto")                   # CWRU if here, simulated otherwise
split = make_split(dataset, split="load:3")      # Windows for train, validation and test
"""

from cascade_ops.data.bearings import CharacteristicFrequencies, frequencies, orders
from cascade_ops.data.labels import CWRU_FAULT_LABELS, CWRU_LABELS, FAULT_TYPES, fault_type
from cascade_ops.data.locate import DatasetStatus, available, cache_root, find_dataset, open_dataset
from cascade_ops.data.readers import DATASETS, DatasetEntry
from cascade_ops.data.resample import COMMON_RATE_HZ, resample
from cascade_ops.data.simulate import simulate_dataset, simulate_recording
from cascade_ops.data.types import Bearing, Dataset, DatasetInfo, Recording, SplitData, Windows
from cascade_ops.data.windows import make_split

__all__ = [
    "COMMON_RATE_HZ",
    "CWRU_FAULT_LABELS",
    "CWRU_LABELS",
    "DATASETS",
    "FAULT_TYPES",
    "Bearing",
    "CharacteristicFrequencies",
    "Dataset",
    "DatasetEntry",
    "DatasetInfo",
    "DatasetStatus",
    "Recording",
    "SplitData",
    "Windows",
    "available",
    "cache_root",
    "fault_type",
    "find_dataset",
    "frequencies",
    "make_split",
    "open_dataset",
    "orders",
    "resample",
    "simulate_dataset",
    "simulate_recording",
]
