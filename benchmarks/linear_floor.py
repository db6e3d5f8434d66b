"""What a linear model reads from log-spectra, on the splits of diagnosis.py: how hard is the task at all?

    python benchmarks/linear_floor.py

Ridge regression onto one-hot labels (closed form, λ = 1) from the log-magnitude spectrum of each window.
"""

from __future__ import annotations

import numpy as np
from diagnosis import SETTINGS

from cascade_ops.data import CWRU_FAULT_LABELS, Windows, make_split, open_dataset


def features(windows: Windows) -> np.ndarray:
    """Windows × (bins + 1)."""
    spectra = np.log(np.abs(np.fft.rfft(windows.signal * np.hanning(windows.signal.shape[1]))) + 1e-3)
    return np.hstack([spectra, np.ones((len(spectra), 1))])


def main() -> None:
    print("| setting | ridge on log-spectra |\n|---|---|")
    for setting in SETTINGS.values():
        classes = CWRU_FAULT_LABELS if setting.faults_only else None
        split = make_split(open_dataset(setting.dataset), split=setting.split, classes=classes)
        x, one_hot = features(split.train), np.eye(len(split.train.classes))[split.train.label]
        weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ one_hot)
        accuracy = np.mean((features(split.test) @ weights).argmax(axis=1) == split.test.label)
        print(f"| {setting.title} | {100 * accuracy:.1f} |")


if __name__ == "__main__":
    main()
