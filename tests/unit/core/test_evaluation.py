"""Figures against what they are by definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.errors import DataError, UnknownNameError
from cascade_ops.evaluation import evaluate, evaluate_logits, macro_auroc, predict, wilson
from tests.factories import batch_for, classifier, gpt2, inputs_for, logits_of


@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(hits: int, samples: int, low: float, high: float) -> None:
    metric = wilson(hits, samples)
    assert (metric.value, metric.samples) == (hits / samples, samples)
    assert metric.low == pytest.approx(low, abs=5e-5)
    assert metric.high == pytest.approx(high, abs=5e-5)


@settings(deadline=None)
@given(samples=st.integers(1, 10_000), fraction=st.floats(0, 1))
def test_wilson_is_the_formula_and_holds_the_value(samples: int, fraction: float) -> None:
    hits = round(fraction * samples)
    metric = wilson(hits, samples)
    z, p = 1.959963984540054, hits / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(p * (1 - p) / samples + (z / (2 * samples)) ** 2)
    assert 0 <= metric.low <= metric.value <= metric.high <= 1
    assert metric.low == pytest.approx(centre - half, abs=1e-9)
    assert metric.high == pytest.approx(centre + half, abs=1e-9)


def test_confusion_recall_and_fault_accuracy() -> None:
    truth = torch.tensor([0, 0, 1, 1, 1, 3])
    predicted = torch.tensor([0, 1, 1, 1, 0, 3])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    found = evaluate_logits(logits, truth, ("N", "IR", "B", "OR"))
    assert found.confusion == ((1, 1, 0, 0), (1, 2, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1))
    assert found.metric == wilson(4, 6)
    assert found.per_class == pytest.approx({"N": 0.5, "IR": 2 / 3, "OR": 1.0})
    assert found.extra["macro_recall"].value == pytest.approx((0.5 + 2 / 3 + 1) / 3)
    assert found.extra["fault_accuracy"] == wilson(3, 4, "fault_accuracy")
    assert found.classes == ("N", "IR", "B", "OR")
    assert found.loss == pytest.approx(-float(logits.log_softmax(1)[torch.arange(6), truth].mean()))


def test_there_is_no_fault_accuracy_without_healthy_samples() -> None:
    logits, labels = torch.eye(3)[[1, 2]], torch.tensor([1, 2])
    assert "fault_accuracy" not in evaluate_logits(logits, labels, ("N", "IR", "OR")).extra
    assert "fault_accuracy" not in evaluate_logits(logits, labels, ("B", "IR", "OR")).extra
    assert "macro_auroc" not in evaluate_logits(logits, torch.tensor([1, 1]), ("N", "IR", "OR")).extra


def pair_counting_auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Over all (positive, negative) pairs: the fraction in the right order, ties as one half."""
    areas = []
    for label in labels.unique().tolist():
        wins = pairs = 0.0
        for score, is_label in zip(probabilities[:, label].tolist(), labels == label, strict=True):
            for other, other_is_label in zip(probabilities[:, label].tolist(), labels == label, strict=True):
                if is_label and not other_is_label:
                    pairs += 1
                    wins += 1.0 if score > other else 0.5 if score == other else 0.0
        areas.append(wins / pairs)
    return sum(areas) / len(areas)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=3, max_size=3)),
        min_size=2,
        max_size=14,
    )
)
def test_macro_auroc_counts_pairs_with_ties(rows: list[tuple[int, list[int]]]) -> None:
    labels = torch.tensor([label for label, _ in rows])
    probabilities = torch.tensor([row for _, row in rows]) / 4
    found = macro_auroc(probabilities, labels)
    if labels.unique().numel() < 2:
        assert found is None
    else:
        assert found == pytest.approx(pair_counting_auroc(probabilities, labels), abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_a_classifier_is_evaluated_batch_by_batch_in_order(batch_size: int) -> None:
    model = classifier(gpt2)
    batch = batch_for(model, samples=9)
    logits = logits_of(model, {"signal": batch["signal"]})
    model.train()
    found = predict(model, batch, batch_size=batch_size)
    torch.testing.assert_close(found, logits)
    assert not model.training
    result = evaluate(model, batch, task="diagnosis", classes=("N", "IR", "OR"), batch_size=batch_size)
    assert result.metric.value == float((logits.argmax(1) == batch["labels"]).double().mean())


@pytest.mark.parametrize("batch_size", [16, 48])
def test_perplexity_is_exp_of_the_mean_over_tokens(batch_size: int) -> None:
    model = gpt2()
    batch = inputs_for(model, samples=5, tokens=8)
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 5:], mask[1, :2] = 0, 0
    batch["attention_mask"] = mask
    losses = []
    log_probabilities = logits_of(model, batch).double().log_softmax(dim=-1)
    for n in range(5):
        for t in range(7):
            if mask[n, t] and mask[n, t + 1]:
                losses.append(-float(log_probabilities[n, t, batch["input_ids"][n, t + 1]]))
    found = evaluate(model, batch, task="lm", batch_size=batch_size)
    mean = sum(losses) / len(losses)
    assert found.metric.name == "perplexity"
    assert found.metric.samples == len(losses) == 5 * 7 - 3 - 2
    assert found.loss == pytest.approx(mean, rel=1e-6)
    assert found.metric.value == pytest.approx(math.exp(mean), rel=1e-6)
    assert found.metric.low < found.metric.value < found.metric.high


def test_one_sequence_has_no_interval() -> None:
    model = gpt2()
    metric = evaluate(model, inputs_for(model, samples=1), task="lm").metric
    assert metric.low == metric.value == metric.high


def test_bad_requests_are_refused() -> None:
    model = classifier(gpt2)
    batch = batch_for(model)
    with pytest.raises(UnknownNameError, match=r"unknown task 'diagnosys'\. Did you mean 'diagnosis'"):
        evaluate(model, batch, task="diagnosys")
    empty = {name: tensor[:0] for name, tensor in batch.items()}
    with pytest.raises(DataError, match="at least one sample, got an empty set"):
        evaluate(model, empty, task="diagnosis", classes=("N", "IR", "OR"))
