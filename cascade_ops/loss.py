"""One loss per sample, for classifiers and language models alike."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cascade_ops.batches import Batch

IGNORE = -100


def per_sample_loss(model: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
    """Cross-entropy of each sample, in nats.

    A classifier's logits are batch × classes. A language model's are batch × tokens × vocabulary:
    the loss is the mean over the sample's predicted tokens (labels default to ``input_ids``;
    padding and −100 are left out).
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return losses_of(model(**inputs).logits, batch)


def losses_of(logits: Float[Tensor, "batch *tokens classes"], batch: Batch) -> Float[Tensor, " batch"]:
    """``per_sample_loss`` of logits that are there already."""
    if logits.dim() == 2:
        return cross_entropy(wide(logits), batch["labels"], reduction="none")
    loss, counted = token_losses(logits, next_tokens(batch))
    return loss.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def next_tokens(batch: Batch) -> Int[Tensor, "batch tokens"]:
    """What each position must predict; −100 where there is nothing to predict, or nothing to predict from
    (padding on either side)."""
    labels = batch.get("labels", batch["input_ids"])
    targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)], dim=1)
    if "attention_mask" in batch:
        real = batch["attention_mask"] != 0
        targets[:, :-1] = targets[:, :-1].masked_fill(~(real[:, :-1] & real[:, 1:]), IGNORE)
    return targets


def token_losses(
    logits: Float[Tensor, "batch tokens vocabulary"], targets: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Loss of each token and whether it counts."""
    flat = cross_entropy(wide(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(targets.shape), (targets != IGNORE).long()


def wide(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least float32: half precision is widened, float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
