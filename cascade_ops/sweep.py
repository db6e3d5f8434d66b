"""The sweep that fills ``Statistics``: forward through a piece of a model, and back.

Forward statistics are read off the inputs of two projections and the ends of each block. Gate gradients need
no gates: with x the gated quantity and every gate at 1, ``∂ℓ/∂g = Σ x · ∂ℓ/∂x`` over the unit's elements, so
one backward pass through activations (weights get no gradient) gives them all, sample by sample.

A piece that is not the whole model starts from the hidden states at its lower boundary and, on the way
back, from the loss's gradient at its upper one. Where it lacks weights it never runs: the first block's input is
replaced, and the pass stops after the last block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.anatomy import base_of, blocks_of, family_of
from cascade_ops.batches import Batch, length_of
from cascade_ops.granularity import Granularity
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import linear, weight_of
from cascade_ops.loss import per_sample_loss
from cascade_ops.reduce import column_dot, column_sums, gram, row_cosines, wide
from cascade_ops.shards import Piece
from cascade_ops.statistics import (
    ABS_GRADIENT,
    ABS_X,
    COSINE,
    PROJECTED,
    SQUARED_GRADIENT,
    X_SQUARED,
    XX,
    Key,
    Need,
    Statistics,
    X,
)

Hidden = Float[Tensor, "batch tokens hidden"]
GRADIENT: Need = "gate_gradients"


def collect(piece: Piece, batch: Batch, needs: frozenset[Need]) -> Statistics:
    """Statistics of one batch on a whole model: one forward, and one backward only if gradients are needed."""
    if GRADIENT in needs:
        return backward(piece, batch, needs)[0]
    return forward(piece, batch, needs)[0]


@torch.no_grad()
def forward(
    piece: Piece, batch: Batch, needs: frozenset[Need], hidden: Hidden | None = None
) -> tuple[Statistics, Hidden]:
    """Forward statistics, and the hidden states at the upper boundary.

    Args:
        hidden: at the lower boundary; None on the first shard.
    """
    run = _Run(piece, batch, needs - {GRADIENT}, hidden)
    with run.hooked(), suppress(_Stop):
        base_of(piece.model)(**_backbone_inputs(piece.model, batch, hidden))
    return run.statistics(), run.upper


def backward(
    piece: Piece,
    batch: Batch,
    needs: frozenset[Need],
    hidden: Hidden | None = None,
    gradient: Hidden | None = None,
) -> tuple[Statistics, Hidden]:
    """Forward once more, and back: gate gradients, and whatever else is in ``needs``.

    Args:
        hidden: at the lower boundary; None on the first shard.
        gradient: of the summed per-sample losses at the upper boundary; None on the last shard, which
            computes the losses itself.

    Returns:
        The statistics, and the losses' gradient at the lower boundary.
    """
    run = _Run(piece, batch, needs | {GRADIENT}, hidden)
    with torch.enable_grad(), run.released(), run.hooked():
        if piece.shard.is_last:
            end = per_sample_loss(piece.model, batch).sum()
        else:
            with suppress(_Stop):
                base_of(piece.model)(**_backbone_inputs(piece.model, batch, hidden))
            end = run.upper
        (below,) = torch.autograd.grad(end, run.lower, gradient)
    return run.statistics(), below


def _backbone_inputs(model: nn.Module, batch: Batch, hidden: Tensor | None) -> dict[str, Any]:
    """What the backbone alone takes. Above the first shard only the shape of its input counts."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "signal")}
    front_end = getattr(model, "front_end", None)
    if hidden is not None and base_of(model).main_input_name == "input_ids":
        inputs.pop("input_ids", None)
        embedding: Any = base_of(model).get_input_embeddings()
        width = embedding.weight.shape[1]  # OPT may project it to the hidden size
        return {**inputs, "inputs_embeds": hidden.new_zeros(()).expand(*hidden.shape[:2], width)}
    if front_end is not None:
        return {**inputs, "inputs_embeds": front_end(batch["signal"])}
    return inputs


class _Stop(Exception):
    """Raised after a piece's last block: nothing above it is needed."""


@dataclass(slots=True)
class _Run:
    """One pass: its hooks, and what they gather. ``mask`` is 0 at padding."""

    piece: Piece
    batch: Batch
    needs: frozenset[Need]
    hidden: Tensor | None
    tokens: int = 0
    sums: dict[Key, Tensor] = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        mask = self.batch.get("attention_mask")
        self.mask = None if mask is None or bool(mask.all()) else mask

    @property
    def lower(self) -> Tensor:
        """The first block's input: the leaf of the graph."""
        return self.ends[0]

    @property
    def upper(self) -> Tensor:
        return self.ends[1]

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let go of the graph afterwards: its hooks hold this run, a cycle that Python cannot see."""
        try:
            yield
        finally:
            self.ends.clear()

    def statistics(self) -> Statistics:
        return Statistics(samples=length_of(self.batch), tokens=self.tokens, sums=dict(self.sums))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        model = self.piece.model
        spec, blocks = family_of(base_of(model).config), blocks_of(model)
        with ExitStack() as stack:
            stack.enter_context(_quiet(model))
            first = blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
            stack.callback(first.remove)
            for index, (block, layer) in enumerate(zip(blocks, self.piece.anatomy.layers, strict=True)):
                for part, path in (
                    (Granularity.HEAD, spec.attention_output),
                    (Granularity.CHANNEL, spec.mlp_output),
                ):
                    projection = linear(block, path)
                    hook = projection.register_forward_pre_hook(self._columns_hook(part, index, layer))
                    stack.callback(hook.remove)
                after = block.register_forward_hook(self._block_hook(index), with_kwargs=True)
                stack.callback(after.remove)
            last = blocks[-1].register_forward_hook(self._leave)
            stack.callback(last.remove)
            yield

    def _enter(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the boundary's hidden states, or the leaf of the graph, in the place of the input."""
        given = args[0] if args else kwargs["hidden_states"]
        leaf = (given if self.hidden is None else self.hidden).detach()
        if GRADIENT in self.needs:
            leaf.requires_grad_()
        self.ends.append(leaf)
        return ((leaf, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": leaf})

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self.ends.append(output[0] if isinstance(output, tuple) else output)
        if not (self.piece.shard.is_last and GRADIENT in self.needs):
            raise _Stop

    def _columns_hook(self, part: Granularity, index: int, layer: LayerAnatomy) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2)  # tokens × columns
            if GRADIENT in self.needs:
                inputs[0].register_hook(lambda slope: self._column_gradients(part, index, layer, x, slope))
            if self.mask is not None:
                x = x * self.mask.flatten()[:, None].to(x.dtype)
            if "moments" in self.needs:
                moments = column_sums(x, lambda rows: (rows, rows.square()))
                self.sums[X, part, index], self.sums[X_SQUARED, part, index] = moments
            if f"{part.value}_covariance" in self.needs:
                self.sums[XX, part, index] = gram(x)
                if "moments" not in self.needs:
                    (self.sums[X, part, index],) = column_sums(x, lambda rows: (rows,))
            if "projection" in self.needs and part is Granularity.CHANNEL:
                (self.sums[ABS_X, part, index],) = column_sums(x, lambda rows: (rows.abs(),))
            if "projection" in self.needs and part is Granularity.HEAD:
                weight = weight_of(linear(module, "")).detach()
                self.sums[PROJECTED, part, index] = _projected(x, weight, layer)

        return hook

    def _column_gradients(
        self, part: Granularity, index: int, layer: LayerAnatomy, x: Tensor, slope: Tensor
    ) -> None:
        samples = length_of(self.batch)
        pairs = zip(x.chunk(samples), slope.reshape(x.shape).chunk(samples), strict=True)
        by_column = torch.stack([column_dot(one, other) for one, other in pairs])
        if part is Granularity.CHANNEL:
            self._add_gradient(part, index, by_column)
            return
        by_head = by_column.view(samples, layer.heads, layer.head_dim).sum(dim=2)
        self._add_gradient(Granularity.HEAD, index, by_head)
        # A group's gate is the product of its heads' gates, so its gradient is their sum, sample by sample.
        by_group = by_head.new_zeros(samples, layer.kv_heads)
        by_group.index_add_(1, torch.tensor(layer.kv_owner, device=by_head.device), by_head)
        self._add_gradient(Granularity.KV_GROUP, index, by_group)

    def _block_hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else output
            before, after = (args[0] if args else kwargs["hidden_states"]).detach(), result.detach()
            self.tokens = before[..., 0].numel() if self.mask is None else int(self.mask.sum())
            if GRADIENT in self.needs:
                result.register_hook(lambda slope: self._block_gradient(index, before, after, slope))
            if "block_cosine" in self.needs:
                cosine = row_cosines(before.flatten(0, -2), after.flatten(0, -2))
                cosine = cosine if self.mask is None else cosine * self.mask.flatten()
                self.sums[COSINE, Granularity.LAYER, index] = cosine.sum()[None]

        return hook

    def _block_gradient(self, index: int, before: Tensor, after: Tensor, slope: Tensor) -> None:
        """``h_out = h_in + g·(block(h_in) − h_in)``, so ``∂ℓ/∂g = Σ (h_out − h_in) · ∂ℓ/∂h_out``."""
        change = (wide(after) - before).mul_(slope)
        by_sample = change.flatten(1).sum(dim=1, keepdim=True).double()
        self._add_gradient(Granularity.LAYER, index, by_sample)

    def _add_gradient(
        self, granularity: Granularity, index: int, by_sample: Float[Tensor, "batch units"]
    ) -> None:
        self.sums[ABS_GRADIENT, granularity, index] = by_sample.abs().sum(dim=0)
        self.sums[SQUARED_GRADIENT, granularity, index] = by_sample.square().sum(dim=0)


def _projected(
    x: Float[Tensor, "tokens columns"], weight: Float[Tensor, "out columns"], layer: LayerAnatomy
) -> Float[Tensor, " heads"]:
    """``Σ_t Σ_o |Σ_{d∈h} x_td W_od|`` for each head h, one head in memory at a time."""
    parts = zip(x.split(layer.head_dim, dim=1), weight.split(layer.head_dim, dim=1), strict=True)
    kind = torch.promote_types(x.dtype, torch.float32)
    sums = [(head @ part.T).abs_().sum(dtype=kind) for head, part in parts]
    return torch.stack(sums).double()


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no weight gradients, no KV cache; restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    config = base_of(model).config
    cache = getattr(config, "use_cache", None)
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    if cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if cache is not None:
            config.use_cache = cache
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training
