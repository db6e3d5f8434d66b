"""Variation of training signals."""

from __future__ import annotations

import pytest
import torch

from cascade_ops.augment import Augment, augmented, stretched
from cascade_ops.errors import ConfigError
from tests.factories import tones


def test_a_factor_of_one_changes_nothing() -> None:
    signal = tones().train["signal"]
    torch.testing.assert_close(stretched(signal, torch.ones(len(signal))), signal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_stretched_line_has_another_slope_about_the_middle(factor: float) -> None:
    line = torch.arange(101.0)[None, :] - 50
    inside = slice(10, -10)  # a factor above 1 holds the ends
    torch.testing.assert_close(stretched(line, torch.tensor([factor]))[:, inside], (factor * line)[:, inside])


def test_stretching_moves_the_frequency() -> None:
    time = torch.arange(2048.0)
    tone = torch.sin(2 * torch.pi * 100 / 2048 * time)[None, :]
    spectrum = torch.fft.rfft(stretched(tone, torch.tensor([0.9]))[0]).abs()
    assert int(spectrum.argmax()) == 90


def test_signals_are_normalised_and_the_rest_passes_through() -> None:
    batch = tones().train
    varied = augmented(batch, Augment(speed=0.03, noise=0.3), torch.Generator().manual_seed(0))
    signal = varied["signal"]
    assert signal.shape == batch["signal"].shape
    torch.testing.assert_close(signal.mean(dim=1), torch.zeros(len(signal)), rtol=0, atol=1e-5)
    torch.testing.assert_close(signal.std(dim=1), torch.ones(len(signal)))
    assert varied["labels"] is batch["labels"]
    assert not torch.equal(signal, batch["signal"])


def test_the_generator_decides() -> None:
    batch, augment = tones().train, Augment()

    def draw(seed: int) -> torch.Tensor:
        return augmented(batch, augment, torch.Generator().manual_seed(seed))["signal"]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_nothing_to_vary() -> None:
    batch, tokens = tones().train, {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    generator = torch.Generator().manual_seed(0)
    assert augmented(batch, None, generator) is batch
    assert augmented(tokens, Augment(), generator) is tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"speed": 0.5}, r"speed: must be in \[0, 0\.5\)"), ({"noise": -0.1}, "noise: must be ≥ 0")],
)
def test_bad_settings_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment(**fields)
