"""What scoring must know about a model's behaviour on calibration data, as mergeable sums.

``Statistics`` is a commutative monoid under ``+``: sums of any partition of the calibration set add
up to the same statistics, so one code path serves a local loop, shards and a resumed run. All sums
accumulate in float64.

| quantity | key | sum over |
|---|---|---|
| ``x``, ``x²`` | (name, HEAD or CHANNEL, layer) | tokens; one entry per input column |
| ``|∂ℓ/∂g|``, ``(∂ℓ/∂g)²`` | (name, granularity, layer) | samples; one entry per unit |
| ``cos`` | (name, LAYER, layer) | tokens; cosine of the block's input and output |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.anatomy import ModelAnatomy, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, length_of
from cascade_ops.gates import Gates, gated
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss

Need = Literal["moments", "gate_gradients", "block_cosine"]
Key = tuple[str, Granularity, int]

X, X_SQUARED, COSINE = "x", "x2", "cos"
ABS_GRADIENT, SQUARED_GRADIENT = "abs_gradient", "squared_gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Sums over ``samples`` samples and ``tokens`` tokens."""

    samples: int
    tokens: int
    sums: Mapping[Key, Float[Tensor, " _units"]]

    @classmethod
    def zero(cls) -> Statistics:
        return cls(samples=0, tokens=0, sums={})

    def __add__(self, other: Statistics) -> Statistics:
        keys = dict.fromkeys((*self.sums, *other.sums))
        merged = {
            key: self.sums[key] + other.sums[key]
            if key in self.sums and key in other.sums
            else self.sums.get(key, other.sums.get(key))
            for key in keys
        }
        return Statistics(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            sums={key: value for key, value in merged.items() if value is not None},
        )


def collect(model: nn.Module, anatomy: ModelAnatomy, batch: Batch, needs: frozenset[Need]) -> Statistics:
    """Statistics of one batch: one forward, and one backward through activations only if gate
    gradients are needed (weights get no gradient)."""
    samples = length_of(batch)
    sweep = _Sweep(mask=_token_mask(batch))
    with _frozen(model), sweep.watching(model, needs):
        if "gate_gradients" in needs:
            sweep.sums.update(_gate_gradients(model, anatomy, batch, samples))
        else:
            with torch.no_grad():
                base_of(model)(**_backbone_inputs(model, batch))
    return Statistics(samples=samples, tokens=sweep.tokens, sums=sweep.sums)


def _backbone_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """What the backbone alone takes, so that forward-only statistics skip the head."""
    front_end = getattr(model, "front_end", None)
    if front_end is not None:
        return {"inputs_embeds": front_end(batch["signal"])}
    return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}


def _token_mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients, restored afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training


@dataclass(slots=True)
class _Sweep:
    """Hooks that fill ``sums`` and ``tokens`` during one forward. ``mask`` is 0 at padding."""

    mask: Tensor | None
    sums: dict[Key, Tensor] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def watching(self, model: nn.Module, needs: frozenset[Need]) -> Iterator[None]:
        spec = family_of(base_of(model).config)
        with ExitStack() as stack:
            for index, block in enumerate(blocks_of(model)):
                stack.callback(
                    block.register_forward_hook(self._block_hook(index, needs), with_kwargs=True).remove
                )
                if "moments" in needs:
                    for part, path in (
                        (Granularity.HEAD, spec.attention_output),
                        (Granularity.CHANNEL, spec.mlp_output),
                    ):
                        hook = self._moments_hook(part, index)
                        stack.callback(block.get_submodule(path).register_forward_pre_hook(hook).remove)
            yield

    def _moments_hook(self, part: Granularity, layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().flatten(0, -2).double()  # tokens × columns
            if self.mask is not None:
                x = x * self.mask.flatten()[:, None]
            self.sums[X, part, layer] = x.sum(dim=0)
            self.sums[X_SQUARED, part, layer] = x.square().sum(dim=0)

        return hook

    def _block_hook(self, layer: int, needs: frozenset[Need]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).detach()
            self.tokens = before[..., 0].numel() if self.mask is None else int(self.mask.sum())
            if "block_cosine" in needs:
                after = (output[0] if isinstance(output, tuple) else output).detach()
                cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
                cosine = cosine if self.mask is None else cosine * self.mask
                self.sums[COSINE, Granularity.LAYER, layer] = cosine.sum()[None]

        return hook


def _gate_gradients(model: nn.Module, anatomy: ModelAnatomy, batch: Batch, samples: int) -> dict[Key, Tensor]:
    """|∂ℓₙ/∂g| and (∂ℓₙ/∂g)², summed over samples n, for every unit of every granularity."""
    parameter = next(model.parameters())
    gates = Gates.ones(
        anatomy, batch=samples, dtype=parameter.dtype, device=parameter.device, requires_grad=True
    )
    leaves = (gates.layer, *gates.head, *gates.channel)
    with gated(model, gates):
        loss = per_sample_loss(model, batch).sum()
    gradients = [gradient.double() for gradient in torch.autograd.grad(loss, leaves)]
    depth = len(anatomy.layers)
    by_layer, by_head, by_channel = gradients[0], gradients[1 : 1 + depth], gradients[1 + depth :]
    sums: dict[Key, Tensor] = {}
    for index, layer in enumerate(anatomy.layers):
        owner = torch.tensor(layer.kv_owner, device=parameter.device)
        # A group's gate is the product of its heads' gates, so its gradient is their sum, sample by sample.
        group = torch.zeros(samples, layer.kv_heads, dtype=torch.float64, device=parameter.device)
        group.index_add_(1, owner, by_head[index])
        for granularity, gradient in (
            (Granularity.LAYER, by_layer[:, index : index + 1]),
            (Granularity.HEAD, by_head[index]),
            (Granularity.KV_GROUP, group),
            (Granularity.CHANNEL, by_channel[index]),
        ):
            sums[ABS_GRADIENT, granularity, index] = gradient.abs().sum(dim=0)
            sums[SQUARED_GRADIENT, granularity, index] = gradient.square().sum(dim=0)
    return sums
