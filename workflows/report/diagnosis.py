"""One recording, heard by both models: the section of the page that shows a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from workflows.report import format as fmt
from workflows.report import spectra


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleDiagnosis:
    """One recording as both models judge it.

    ``waveform`` is the window that was classified, ``envelope`` the amplitude of its (or, better, its
    whole recording's) envelope spectrum at ``envelope_hz``. ``characteristic_hz`` names the bearing's
    frequencies at this shaft speed; ``expected`` lists those that the true fault should raise.
    ``dense`` and ``final`` are probabilities by class.
    """

    recording: str
    truth: str
    fs_hz: float
    rpm: float
    waveform: tuple[float, ...]
    envelope_hz: tuple[float, ...]
    envelope: tuple[float, ...]
    characteristic_hz: dict[str, float]
    dense: dict[str, float]
    final: dict[str, float]
    expected: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassShare:
    name: str
    dense: float
    final: float
    truth: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyRow:
    name: str
    hz: str
    prominence: str
    expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One diagnosed recording."""

    source: ExampleDiagnosis
    verdict: str
    right: bool
    dense_answer: str
    final_answer: str
    shares: tuple[ClassShare, ...]
    frequencies: tuple[FrequencyRow, ...]
    waveform: Markup
    spectrum: Markup


def example_view(example: ExampleDiagnosis) -> ExampleView:
    dense, final = _answer(example.dense), _answer(example.final)
    right = final[0] == example.truth
    verdict = f"Diagnosed {'right' if right else 'wrong'}: {final[0]}"
    if not right:
        verdict += f", truly {example.truth}"
    names = dict.fromkeys((*example.dense, *example.final))
    shares = sorted(
        (
            ClassShare(
                name=name,
                dense=_probability(example.dense, name),
                final=_probability(example.final, name),
                truth=name == example.truth,
            )
            for name in names
        ),
        key=lambda share: -max(share.dense, share.final),
    )
    frequencies = []
    for name, hz in sorted(example.characteristic_hz.items(), key=lambda item: item[1]):
        times = spectra.prominence(example.envelope_hz, example.envelope, hz)
        frequencies.append(
            FrequencyRow(
                name=name,
                hz=f"{fmt.significant(hz, 4)}{fmt.NBSP}Hz",
                prominence=fmt.factor(times),
                expected=name in example.expected,
            )
        )
    return ExampleView(
        source=example,
        verdict=verdict,
        right=right,
        dense_answer=f"{dense[0]} ({fmt.percent(dense[1], 0)})",
        final_answer=f"{final[0]} ({fmt.percent(final[1], 0)})",
        shares=tuple(shares[:5]),
        frequencies=tuple(frequencies),
        waveform=spectra.waveform_chart(example.waveform, example.fs_hz),
        spectrum=spectra.spectrum_chart(
            example.envelope_hz, example.envelope, example.characteristic_hz, example.expected
        ),
    )


def _probability(probabilities: Mapping[str, float], name: str) -> float:
    value = probabilities.get(name, 0.0)
    return value if math.isfinite(value) else 0.0


def _answer(probabilities: Mapping[str, float]) -> tuple[str, float]:
    """The likeliest class; ("no answer", NaN) where every probability is unknown."""
    usable = [(name, value) for name, value in probabilities.items() if math.isfinite(value)]
    return max(usable, key=lambda item: item[1], default=("no answer", math.nan))
