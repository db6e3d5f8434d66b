"""Which layers carry information: what a probe can use after each block (Xu et al. 2020, arXiv 2002.10689).

Usable information is ``H(Y) − CE_l``, with CE_l the cross-entropy of a predictor from a fixed family on h_l. It may
grow with depth, which information in Shannon's sense cannot; that is why it can rank layers at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cascade_ops.anatomy import base_of, blocks_of, family_of
from cascade_ops.batches import Batch, length_of, on_device, sequential
from cascade_ops.loss import IGNORE, next_tokens, token_losses
from cascade_ops.sia.results import Depth

FOLDS = 2
PENALTY = 1e-2


def entropy_of(batch: Batch) -> float:
    """H(Y) in nats of the labels, or of the next tokens, by their frequencies in ``batch``."""
    if "labels" in batch and batch["labels"].dim() == 1:
        targets = batch["labels"]
    else:
        targets = next_tokens(batch).flatten()
        targets = targets[targets != IGNORE]
    counts = torch.unique(targets, return_counts=True)[1].double()
    share = counts / counts.sum()
    return float(-(share * share.log()).sum())


@torch.no_grad()
def information_by_depth(model: nn.Module, batch: Batch) -> Depth:
    """The profile of a classifier (linear probes on mean states, fitted on one half and measured on the other, both
    ways) or of a language model (its own final norm and head after each block)."""
    entropy = entropy_of(batch)
    labels = batch.get("labels")
    if labels is None or labels.dim() != 1:
        losses, probe = _lens(model, batch), "the model's own final norm and head"
    else:
        states = _mean_states(model, batch)
        losses, probe = [_probe_loss(layer, labels) for layer in states], "linear, cross-fitted"
    return Depth(
        entropy=entropy,
        probe=probe,
        information=tuple(entropy - loss for loss in losses),
        samples=length_of(batch),
    )


@contextmanager
def _blocks_kept(model: nn.Module) -> Iterator[list[Tensor]]:
    """Filled with every block's output, in order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for block in blocks_of(model):
            stack.callback(block.register_forward_hook(keep).remove)
        yield found


def _mean_states(model: nn.Module, batch: Batch) -> Float[Tensor, "layers samples hidden"]:
    parts = []
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    for piece in sequential(inputs, 64):
        with _blocks_kept(model) as found:
            model(**on_device(piece, model))
        mask = piece.get("attention_mask")
        weight = torch.ones(found[0].shape[:2]) if mask is None else mask.float()
        weight = (weight / weight.sum(dim=1, keepdim=True)).to(found[0].device)
        parts.append(torch.stack([(state.float() * weight[..., None]).sum(dim=1).cpu() for state in found]))
    return torch.cat(parts, dim=1)


def _probe_loss(x: Float[Tensor, "samples hidden"], labels: Int[Tensor, " samples"]) -> float:
    """Cross-entropy of multinomial logistic regression on samples that it has not seen."""
    fold = torch.arange(len(labels)) % FOLDS
    losses = []
    for number in range(FOLDS):
        seen, held = fold != number, fold == number
        mean, spread = x[seen].mean(dim=0), x[seen].std(dim=0).clamp(min=1e-6)
        weight, bias = _logistic((x[seen] - mean) / spread, labels[seen], int(labels.max()) + 1)
        logits = ((x[held] - mean) / spread) @ weight + bias
        losses.append(cross_entropy(logits, labels[held], reduction="none"))
    return float(torch.cat(losses).double().mean())


@torch.enable_grad()
def _logistic(
    x: Float[Tensor, "samples hidden"], labels: Int[Tensor, " samples"], classes: int
) -> tuple[Float[Tensor, "hidden classes"], Float[Tensor, " classes"]]:
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(x @ weight + bias, labels) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def _lens(model: nn.Module, batch: Batch) -> list[float]:
    """Cross-entropy of each block's output through what follows the last block."""
    spec, base = family_of(base_of(model).config), base_of(model)
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    sums, tokens = torch.zeros(len(blocks_of(model)), dtype=torch.float64), 0
    for piece in sequential(batch, 8):
        piece = on_device(piece, model)
        with _blocks_kept(model) as found:
            base(**{name: tensor for name, tensor in piece.items() if name != "labels"})
        targets = next_tokens(piece)
        for index, state in enumerate(found):
            for path in spec.tail:
                state = base.get_submodule(path)(state)
            loss, counted = token_losses(head(state), targets)
            sums[index] += loss.double().sum().cpu()
        tokens += int(counted.sum())
    return [float(value) for value in sums / tokens]
