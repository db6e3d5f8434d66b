"""Measuring a model: accuracy or perplexity, with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cascade_ops.batches import Batch, length_of, on_device, sequential
from cascade_ops.errors import DataError
from cascade_ops.loss import next_tokens, token_losses
from cascade_ops.results import Evaluation, Metric

Answers = Callable[[Batch], Float[Tensor, "batch *positions classes"]]
"""Inputs, without labels, to logits."""
NORMAL = "N"
"""The class label of a healthy bearing; accuracy over the others is reported beside the headline."""


def wilson(hits: int, samples: int, name: str = "accuracy") -> Metric:
    """A proportion with its Wilson score interval (Wilson 1927), 95 %.

    Windows of one recording are not independent, so the true uncertainty is larger: seeds and splits
    show it.
    """
    interval = stats.binomtest(hits, samples).proportion_ci(0.95, method="wilson")
    value = hits / samples
    return Metric(
        name=name,
        value=value,
        low=min(float(interval.low), value),
        high=max(float(interval.high), value),
        samples=samples,
    )


def evaluate(
    model: nn.Module, data: Batch, *, task: str, classes: Sequence[str] = (), batch_size: int = 256
) -> Evaluation:
    """Measure ``model`` on one side of a split.

    Raises:
        UnknownNameError: no such task.
        DataError: no samples, or other classes than the model's.
    """
    from cascade_ops.tasks import TASKS

    TASKS[task]
    return evaluate_answers(answers_of(model), data, task=task, classes=classes, batch_size=batch_size)


def evaluate_answers(
    answers: Answers, data: Batch, *, task: str, classes: Sequence[str] = (), batch_size: int = 256
) -> Evaluation:
    """The same of anything that answers with logits, such as another runtime. Raises DataError."""
    if task == "lm":
        return _evaluate_lm(answers, data, batch_size=max(1, batch_size // 16))
    return evaluate_logits(_predicted(answers, data, batch_size), data["labels"], classes)


def answers_of(model: nn.Module) -> Answers:
    """Of a model, where it is."""
    model.eval()

    @torch.no_grad()
    def answer(batch: Batch) -> Tensor:
        logits: Tensor = model(**on_device(batch, model)).logits
        return logits

    return answer


def predict(model: nn.Module, data: Batch, *, batch_size: int = 256) -> Float[Tensor, "samples classes"]:
    """Logits of a classifier for all samples, in order."""
    return _predicted(answers_of(model), data, batch_size)


def _predicted(answers: Answers, data: Batch, batch_size: int) -> Float[Tensor, "samples classes"]:
    return torch.cat([answers(_inputs(batch)).float().cpu() for batch in sequential(data, batch_size)])


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def evaluate_logits(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"], classes: Sequence[str]
) -> Evaluation:
    """Accuracy, recall per class, confusion, macro AUROC and accuracy on fault classes only."""
    if len(classes) != logits.shape[1]:
        raise DataError(
            f"the model tells {logits.shape[1]} classes apart, the data names {len(classes)}: "
            f"{', '.join(classes) or 'none'}. Evaluate on the classes it was trained for."
        )
    predicted, n = logits.argmax(dim=1), len(classes)
    confusion = torch.bincount(labels * n + predicted, minlength=n * n).view(n, n)
    support, correct = confusion.sum(dim=1), confusion.diagonal()
    present = [i for i in range(n) if support[i] > 0]
    extra = {
        "macro_recall": _plain(
            "macro_recall", float((correct[present] / support[present]).mean()), len(labels)
        ),
    }
    auroc = macro_auroc(logits.softmax(dim=1), labels)
    if auroc is not None:
        extra["macro_auroc"] = _plain("macro_auroc", auroc, len(labels))
    if NORMAL in classes:
        faults = labels != list(classes).index(NORMAL)
        if 0 < int(faults.sum()) < len(labels):
            hits = int((predicted[faults] == labels[faults]).sum())
            extra["fault_accuracy"] = wilson(hits, int(faults.sum()), "fault_accuracy")
    return Evaluation(
        metric=wilson(int(correct.sum()), len(labels)),
        loss=float(cross_entropy(logits, labels)),
        classes=tuple(classes),
        per_class={classes[i]: float(correct[i] / support[i]) for i in present},
        confusion=tuple(tuple(int(v) for v in row) for row in confusion.tolist()),
        extra=extra,
    )


def macro_auroc(
    probabilities: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"]
) -> float | None:
    """Area under the ROC curve of each class against the rest (Mann–Whitney), averaged over the
    classes that are present; None if only one is."""
    present = labels.unique().tolist()
    if len(present) < 2:
        return None
    areas = []
    for label in present:
        positive = labels == label
        ranks = torch.as_tensor(stats.rankdata(probabilities[:, label].double().numpy()))
        n_pos, n_neg = int(positive.sum()), int((~positive).sum())
        areas.append((float(ranks[positive].sum()) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
    return math.fsum(areas) / len(areas)


def _plain(name: str, value: float, samples: int) -> Metric:
    """A figure without an interval of its own."""
    return Metric(name=name, value=value, low=math.nan, high=math.nan, samples=samples)


@torch.no_grad()
def _evaluate_lm(answers: Answers, data: Batch, *, batch_size: int) -> Evaluation:
    """Perplexity ``exp(Σ loss / Σ tokens)``; the interval is that of the mean over sequences
    (normal approximation, sequences as independent samples)."""
    losses, counts = [], []
    for batch in sequential(data, batch_size):
        logits = answers(_inputs(batch))
        loss, counted = token_losses(logits, next_tokens(batch).to(logits.device))
        losses.append(loss.double().sum(dim=1).cpu())
        counts.append(counted.sum(dim=1).cpu())
    total, tokens = torch.cat(losses), torch.cat(counts)
    mean = float(total.sum() / tokens.sum())
    per_sequence = total / tokens.clamp(min=1)
    spread = 1.96 * float(per_sequence.std()) / math.sqrt(length_of(data)) if length_of(data) > 1 else 0.0
    perplexity = Metric(
        name="perplexity",
        value=math.exp(mean),
        low=math.exp(mean - spread),
        high=math.exp(mean + spread),
        samples=int(tokens.sum()),
    )
    return Evaluation(metric=perplexity, loss=mean)
