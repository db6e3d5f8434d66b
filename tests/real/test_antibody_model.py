"""Real pretrained weights: what holds for tiny random models has to hold here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops import Granularity, anatomy_of, load_pruned, masked, plan_ratio, prune, save_pruned, score
from cascade_ops.loss import per_sample_loss

# Heavy-chain variable domains of two marketed antibodies: trastuzumab and adalimumab.
TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC"
    "SRWGGDGFYAMDYWGQGTLVTVSS"
)
ADALIMUMAB = (
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYC"
    "AKVSYLSTASSLDYWGQGTLVTVSS"
)


@pytest.fixture(scope="module")
def model(antibody_model: Path) -> PreTrainedModel:
    return load_pruned(antibody_model)


@pytest.fixture(scope="module")
def vocabulary(antibody_model: Path) -> dict[str, int]:
    return {token: index for index, token in enumerate((antibody_model / "vocab.txt").read_text().split())}


def encoded(sequence: str, vocabulary: dict[str, int]) -> Tensor:
    tokens = ["[HEAVY]", "[HUMAN]", *sequence, "[SEP]"]
    return torch.tensor([[vocabulary[token] for token in tokens]])


def perplexity(model: PreTrainedModel, ids: Tensor) -> float:
    with torch.no_grad():
        return per_sample_loss(model, {"input_ids": ids}).exp().item()


@pytest.fixture(scope="module")
def calibration(model: PreTrainedModel, vocabulary: dict[str, int]) -> list[dict[str, Tensor]]:
    """Sequences that the model itself draws: no recording of real ones is needed to calibrate."""
    torch.manual_seed(0)
    start = torch.tensor([[vocabulary["[HEAVY]"], vocabulary["[HUMAN]"]]]).repeat(16, 1)
    drawn = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        max_new_tokens=110,
        min_new_tokens=110,
        pad_token_id=0,
        eos_token_id=vocabulary["[SEP]"],
    )
    return [{"input_ids": drawn}]


def test_weights_are_the_trained_ones(model: PreTrainedModel, vocabulary: dict[str, int]) -> None:
    ids = encoded(TRASTUZUMAB, vocabulary)
    shuffled = ids.clone()
    shuffled[0, 2:-1] = ids[0, 2:-1][
        torch.randperm(ids.shape[1] - 3, generator=torch.Generator().manual_seed(0))
    ]
    assert perplexity(model, ids) < 4
    assert perplexity(model, shuffled) > 15


@pytest.mark.parametrize("granularity", list(Granularity), ids=str)
def test_surgery_equals_masking(
    model: PreTrainedModel,
    calibration: list[dict[str, Tensor]],
    vocabulary: dict[str, int],
    granularity: Granularity,
    tmp_path: Path,
) -> None:
    scores = score(model, calibration, ("taylor",))["taylor", granularity]
    plan = plan_ratio(scores, 0.25)
    ids = encoded(ADALIMUMAB, vocabulary)
    with torch.no_grad(), masked(model, plan):
        expected = model(ids).logits
    cut = copy.deepcopy(model)
    prune(cut, plan)
    with torch.no_grad():
        found = cut(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    save_pruned(cut, tmp_path / "cut")
    again = load_pruned(tmp_path / "cut")
    assert anatomy_of(again) == anatomy_of(cut)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, found)


def test_importance_beats_chance(
    model: PreTrainedModel, calibration: list[dict[str, Tensor]], vocabulary: dict[str, int]
) -> None:
    """Half of the channels go: every criterion must do better than the luckiest of five random draws."""
    sequences = [encoded(one, vocabulary) for one in (TRASTUZUMAB, ADALIMUMAB)]

    def after(criterion: str, seed: int = 0) -> float:
        scores = score(model, calibration, (criterion,), seed=seed)[criterion, Granularity.CHANNEL]
        with masked(model, plan_ratio(scores, 0.5)):
            return sum(perplexity(model, ids) for ids in sequences)

    chance = min(after("random", seed) for seed in range(5))
    found = {name: after(name) for name in ("taylor", "fisher", "wanda", "flap", "magnitude")}
    assert max(found.values()) < chance, found
