"""A few recordings as both models judge them, for the report."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from cascade_ops.batches import take
from cascade_ops.data import Dataset, Recording, Windows, fault_type, frequencies
from cascade_ops.data.envelope import envelope_spectrum
from cascade_ops.evaluation import predict
from workflows.prepare import Prepared
from workflows.report import ExampleDiagnosis

EXPECTED = {"OR": "BPFO", "IR": "BPFI", "B": "2×BSF"}


def diagnose_examples(
    dense: PreTrainedModel, final: PreTrainedModel, prepared: Prepared
) -> tuple[ExampleDiagnosis, ...]:
    """One test window of each fault type (and of a sound bearing, where there is one)."""
    if prepared.dataset is None or prepared.split is None:
        return ()
    windows = prepared.split.test
    chosen = _one_of_each(windows)
    batch = take(prepared.data.test, torch.tensor(chosen))
    judged = [predict(model, batch).softmax(dim=1).double().tolist() for model in (dense, final)]
    return tuple(
        _example(windows, index, prepared.dataset, (judged[0][row], judged[1][row]))
        for row, index in enumerate(chosen)
    )


def _one_of_each(windows: Windows) -> list[int]:
    """The middle window of the first recording of each fault type."""
    first: dict[str, int] = {}
    for index, label in enumerate(windows.label.tolist()):
        first.setdefault(fault_type(windows.classes[label]), index)
    chosen = []
    for index in first.values():
        same = np.flatnonzero(
            (windows.recording == windows.recording[index]) & (windows.label == windows.label[index])
        )
        chosen.append(int(same[len(same) // 2]))
    return chosen


def _example(
    windows: Windows, index: int, dataset: Dataset, judged: tuple[list[float], list[float]]
) -> ExampleDiagnosis:
    position = int(windows.recording[index])
    name, rpm = windows.recordings[position], float(windows.rpm[position])
    recording = next(recording for recording in dataset.recordings if recording.name == name)
    truth = windows.classes[int(windows.label[index])]
    lines, expected = _lines(dataset, recording, rpm)
    hz, amplitude = envelope_spectrum(recording.signal, recording.fs_hz)
    shown = hz <= 3.5 * max(lines.values(), default=200.0)
    return ExampleDiagnosis(
        recording=name,
        truth=truth,
        fs_hz=windows.fs_hz,
        rpm=rpm,
        waveform=tuple(np.round(windows.signal[index].astype(float), 4).tolist()),
        envelope_hz=tuple(np.round(hz[shown], 3).tolist()),
        envelope=tuple(float(f"{value:.5g}") for value in amplitude[shown]),
        characteristic_hz=lines,
        dense=dict(zip(windows.classes, judged[0], strict=True)),
        final=dict(zip(windows.classes, judged[1], strict=True)),
        expected=expected,
        note="nominal speed: the file records none" if recording.rpm_nominal else "",
    )


def _lines(dataset: Dataset, recording: Recording, rpm: float) -> tuple[dict[str, float], tuple[str, ...]]:
    if dataset.info.bearing is None:
        return {}, ()
    rates = frequencies(dataset.info.bearing, rpm)
    lines = {"BPFO": rates.bpfo, "BPFI": rates.bpfi, "2×BSF": 2 * rates.bsf, "FTF": rates.ftf}
    kind = fault_type(recording.label)
    return lines, (EXPECTED[kind],) if kind in EXPECTED else ()
