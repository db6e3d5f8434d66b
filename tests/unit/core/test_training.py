"""Batches, the training loop and recovery."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, blocks_of
from cascade_ops.batches import length_of, sequential, shuffled, subset
from cascade_ops.errors import CascadeError, ConfigError, DataError
from cascade_ops.granularity import Granularity
from cascade_ops.recovery import recover, trainable
from cascade_ops.schedule import Recovery
from cascade_ops.surgery import prune
from cascade_ops.training import TrainConfig, fit
from tests.factories import (
    assert_same_weights,
    batch_for,
    classifier,
    gpt2,
    llama_like,
    logits_of,
    tones,
    varied_plan,
)

# ------------------------------------------------------------------------------------------ batches


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 20), batch_size=st.integers(1, 25), seed=st.integers(0, 5))
def test_each_epoch_sees_every_sample_once(size: int, batch_size: int, seed: int) -> None:
    data = {"x": torch.arange(size), "y": -torch.arange(size)}
    stream, again = shuffled(data, batch_size, seed), shuffled(data, batch_size, seed)
    seen: list[int] = []
    for _ in range(1 + 3 * size // batch_size):
        batch = next(stream)
        assert len(batch["x"]) == batch_size, "batches are always full"
        assert torch.equal(batch["x"], -batch["y"]), "samples stay together"
        assert torch.equal(batch["x"], next(again)["x"]), "the seed decides the order"
        seen.extend(batch["x"].tolist())
    for start in range(0, len(seen) - size + 1, size):
        assert sorted(seen[start : start + size]) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    data = {"x": torch.arange(50)}
    stream = shuffled(data, 50, seed=0)
    first, second = next(stream)["x"], next(stream)["x"]
    other = next(shuffled(data, 50, seed=1))["x"]
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_sequential_batches_are_a_partition_in_order() -> None:
    parts = [batch["x"].tolist() for batch in sequential({"x": torch.arange(7)}, 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_subset_is_drawn_without_replacement_by_the_seed() -> None:
    data = {"x": torch.arange(30), "y": torch.arange(30)}
    one, same, other = (subset(data, 10, seed)["x"].tolist() for seed in (1, 1, 2))
    assert one == same == sorted(set(one))
    assert len(one) == 10
    assert one != other
    assert subset(data, 100, 0)["x"].tolist() == list(range(30))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "got none"),
        ({"x": torch.zeros(2), "y": torch.zeros(3)}, "one number of samples"),
        ({"x": torch.zeros(0)}, "empty set"),
    ],
    ids=["nothing", "unequal", "empty"],
)
def test_unusable_data_is_refused(data: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        length_of(data)


# ------------------------------------------------------------------------------------------ training


def trained(seed: int, *, dropout: float = 0.1) -> PreTrainedModel:
    model = classifier(gpt2, resid_pdrop=dropout)
    fit(model, tones().train, TrainConfig(steps=6, batch_size=8), seed=seed)
    return model


def test_the_same_seed_gives_the_same_bits() -> None:
    """Dropout included, and whatever the global generator stands at."""
    one = trained(3)
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.random.get_rng_state()
    two = trained(3)
    assert torch.equal(torch.random.get_rng_state(), state), "training leaves the global generator alone"
    assert_same_weights(one, two)
    other = trained(4)
    assert not all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


def test_training_learns_and_reports() -> None:
    model, data = classifier(gpt2), tones()
    calls: list[tuple[str, int, int, dict[str, float]]] = []

    def progress(phase: str, done: int, total: int, **figures: float) -> None:
        calls.append((phase, done, total, figures))

    config = TrainConfig(steps=40, batch_size=16, learning_rate=1e-2)
    result = fit(model, data.train, config, seed=0, progress=progress)
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])
    assert (result.steps, result.batch_size, len(result.losses)) == (40, 16, 40)
    assert result.trainable_params == sum(p.numel() for p in model.parameters())
    assert not model.training
    assert [call[:3] for call in calls] == [("train", step, 40) for step in range(1, 41)]
    assert [call[3]["loss"] for call in calls] == list(result.losses)


def test_zero_steps_change_nothing() -> None:
    model = classifier(gpt2)
    before = copy.deepcopy(model)
    assert fit(model, tones().train, TrainConfig(steps=0), seed=0).losses == ()
    assert_same_weights(model, before)


def test_frozen_parameters_stay() -> None:
    model = classifier(gpt2)
    before = copy.deepcopy(model.state_dict())
    model.backbone.requires_grad_(False)
    result = fit(model, tones().train, TrainConfig(steps=2, batch_size=4), seed=0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("backbone."), key
    assert result.trainable_params == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model, data = classifier(gpt2), tones()
    train = {**data.train, "signal": data.train["signal"].clone()}
    train["signal"][:, 3] = torch.nan
    with pytest.raises(CascadeError, match=r"recover: the loss became nan at step 1 of 3.*learning rate"):
        fit(model, train, TrainConfig(steps=3, batch_size=4), seed=0, phase="recover")


@pytest.mark.parametrize("fields", [{"steps": -1}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_bad_training_settings_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        TrainConfig(**fields)


# ------------------------------------------------------------------------------------------ recovery


def expected_trainable(model: PreTrainedModel, unfreeze: tuple[str, ...]) -> set[str]:
    """Straight from the words of ``Recovery.unfreeze``."""
    blocks = {id(p) for p in blocks_of(model).parameters()}
    names = set()
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            inside = id(parameter) in blocks
            if (
                ("rest" in unfreeze and not inside)
                or ("norms" in unfreeze and inside and "Norm" in type(module).__name__)
                or ("biases" in unfreeze and inside and leaf == "bias")
            ):
                names.add(f"{path}.{leaf}")
    return names


@pytest.mark.parametrize(
    "unfreeze",
    [parts for n in range(4) for parts in itertools.combinations(("norms", "biases", "rest"), n)],
    ids="+".join,
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_trained_is_exactly_what_unfreeze_says(family: str, unfreeze: tuple[str, ...]) -> None:
    model = classifier(gpt2 if family == "gpt2" else llama_like)
    names = expected_trainable(model, unfreeze)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with trainable(model, Recovery(unfreeze=unfreeze, rank=2), 0):
        open_now = {n.replace(".base_layer", "") for n, p in model.named_parameters() if p.requires_grad}
        plain = {n for n in open_now if ".lora_" not in n}
        assert plain == names
        assert open_now - plain == {n for n, _ in model.named_parameters() if ".lora_" in n}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_rank_is_capped_at_the_smaller_side_and_the_scale_kept() -> None:
    model = gpt2()
    prune(model, varied_plan(anatomy_of(model), Granularity.HEAD))
    with trainable(model, Recovery(rank=12, alpha=24.0), 0):
        for path, module in model.named_modules():
            if hasattr(module, "get_base_layer"):
                wide = min(module.get_base_layer().weight.shape)
                assert module.r["default"] == min(12, wide), path
                assert module.scaling["default"] == pytest.approx(24.0 / 12)
                assert module.lora_A["default"].weight.shape[0] == min(12, wide)
        assert any(m.r["default"] < 12 for m in model.modules() if hasattr(m, "get_base_layer"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recovery_learns_and_leaves_plain_weights(method: str) -> None:
    model, data = classifier(gpt2), tones()
    prune(model, varied_plan(anatomy_of(model), Granularity.CHANNEL))
    names = list(model.state_dict())
    recovery = Recovery(batch_size=16, method=method, learning_rate=1e-2)  # type: ignore[arg-type]
    result = recover(model, data.train, recovery, steps=30, seed=0)
    assert sum(result.losses[-5:]) < 0.8 * sum(result.losses[:5])
    assert list(model.state_dict()) == names
    assert not hasattr(model, "peft_config")
    assert all(p.requires_grad for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert result.trainable_params == total if method == "full" else result.trainable_params > 0


def test_lora_alone_trains_only_the_projections() -> None:
    model = classifier(gpt2)
    before = copy.deepcopy(model.state_dict())
    recover(model, tones().train, Recovery(batch_size=8, unfreeze=()), steps=2, seed=0)
    for key, value in model.state_dict().items():
        moved = ".c_" in key and key.endswith("weight")
        assert torch.equal(value, before[key]) != moved, key


def test_zero_recovery_steps_are_a_no_op() -> None:
    model = classifier(gpt2)
    before = copy.deepcopy(model)
    result = recover(model, tones().train, Recovery(), steps=0, seed=0)
    assert (result.steps, result.trainable_params, result.losses) == (0, 0, ())
    assert_same_weights(model, before)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recovery_is_deterministic(method: str) -> None:
    def run(seed: int) -> PreTrainedModel:
        model = classifier(gpt2, resid_pdrop=0.1)
        recovery = Recovery(batch_size=8, method=method)  # type: ignore[arg-type]
        recover(model, tones().train, recovery, steps=3, seed=seed)
        return model

    one = run(1)
    torch.manual_seed(5)
    assert_same_weights(one, run(1))
    inputs = {"signal": tones().test["signal"]}
    assert not torch.equal(logits_of(one, inputs), logits_of(run(2), inputs))


def test_a_failed_recovery_leaves_no_adapters() -> None:
    model, data = classifier(gpt2), tones()
    names = list(model.state_dict())
    train = {**data.train, "signal": torch.full_like(data.train["signal"], math.inf)}
    with pytest.raises(CascadeError, match="the loss became nan"):
        recover(model, train, Recovery(batch_size=8), steps=2, seed=0)
    assert list(model.state_dict()) == names


def test_a_language_model_recovers_too() -> None:
    model = llama_like()
    prune(model, varied_plan(anatomy_of(model), Granularity.HEAD))
    batch = batch_for(model, samples=8)
    result = recover(model, batch, Recovery(batch_size=8, learning_rate=2e-2), steps=20, seed=0)
    assert result.losses[-1] < result.losses[0]
