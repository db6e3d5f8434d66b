"""Windows kept on disk between runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cascade_ops.data import Dataset
from cascade_ops.data.store import load_split, stored_split


def test_stored_split_reads_back_what_it_made(simulated: Dataset, tmp_path: Path) -> None:
    made = stored_split(simulated, tmp_path, split="time", stride=512)
    (folder,) = tmp_path.iterdir()
    before = (folder / "split.json").stat().st_mtime_ns
    again = stored_split(simulated, tmp_path, split="time", stride=512)
    assert (folder / "split.json").stat().st_mtime_ns == before
    for side in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(made, side).signal, getattr(again, side).signal)


def test_stored_split_knows_options_and_facts_of_recordings(simulated: Dataset, tmp_path: Path) -> None:
    stored_split(simulated, tmp_path, split="time", stride=512)
    stored_split(simulated, tmp_path, split="time", stride=1024)
    first, *rest = simulated.recordings
    faster = dataclasses.replace(simulated, recordings=(dataclasses.replace(first, rpm=first.rpm + 1), *rest))
    stored_split(faster, tmp_path, split="time", stride=512)
    assert len(list(tmp_path.iterdir())) == 3


def test_stored_split_mends_a_damaged_store(simulated: Dataset, tmp_path: Path) -> None:
    made = stored_split(simulated, tmp_path, split="time", stride=512)
    (folder,) = tmp_path.iterdir()
    shard = next(folder.glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])
    again = stored_split(simulated, tmp_path, split="time", stride=512)
    np.testing.assert_array_equal(made.train.signal, again.train.signal)
    assert load_split(folder).name == made.name
