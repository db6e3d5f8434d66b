"""Gates: one scalar per unit, 1 = keep, 0 = removed. Masking and importance both follow from them.

| granularity | where the gate multiplies |
|---|---|
| layer | ``h_out = h_in + g·(block(h_in) − h_in)``: right for pre-norm, post-norm and parallel blocks |
| head | that head's slice of the output projection's input |
| kv_group | the slices of all its query heads |
| channel | that element of the down projection's input |

Gates have a batch axis, so that each sample may see other gates (ablation) and autograd returns
per-sample gate gradients (importance) from a single backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Gate values; the batch axis is 1 (the same for all) or the batch size.

    Attributes:
        layer: batch × layers.
        head: batch × heads, per layer.
        channel: batch × channels, per layer.

    ``_`` in a shape: layers may differ in it.
    """

    layer: Float[Tensor, "batch layers"]
    head: tuple[Float[Tensor, "batch _heads"], ...]
    channel: tuple[Float[Tensor, "batch _channels"], ...]

    @classmethod
    def ones(
        cls,
        anatomy: ModelAnatomy,
        *,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        requires_grad: bool = False,
    ) -> Gates:
        """Every gate open."""

        def open_gates(units: int) -> Tensor:
            return torch.ones(batch, units, dtype=dtype, device=device, requires_grad=requires_grad)

        return cls(
            layer=open_gates(len(anatomy.layers)),
            head=tuple(open_gates(n) for n in anatomy.units(Granularity.HEAD)),
            channel=tuple(open_gates(n) for n in anatomy.units(Granularity.CHANNEL)),
        )

    @classmethod
    def from_plan(
        cls, anatomy: ModelAnatomy, plan: PruningPlan, *, device: torch.device | str = "cpu"
    ) -> Gates:
        """Gates at 0 for every unit that the plan removes. Raises PlanError."""
        plan.validate(anatomy)
        gates = cls.ones(anatomy, device=device)
        match plan.granularity:
            case Granularity.LAYER:
                rows = [(gates.layer, plan.keep[0])]
            case Granularity.HEAD:
                rows = list(zip(gates.head, plan.keep, strict=True))
            case Granularity.KV_GROUP:
                kept = [layer.heads_of(keep) for layer, keep in zip(anatomy.layers, plan.keep, strict=True)]
                rows = list(zip(gates.head, kept, strict=True))
            case Granularity.CHANNEL:
                rows = list(zip(gates.channel, plan.keep, strict=True))
        for gate, keep in rows:
            gate.zero_()
            gate[:, list(keep)] = 1.0
        return gates


@contextmanager
def gated(model: nn.Module, gates: Gates) -> Iterator[None]:
    """Within this context the model's forward multiplies its units by ``gates``."""
    spec = family_of(base_of(model).config)
    with ExitStack() as stack:
        for index, block in enumerate(blocks_of(model)):
            columns = (
                (spec.attention_output, gates.head[index]),
                (spec.mlp_output, gates.channel[index]),
            )
            for path, gate in columns:
                hook = block.get_submodule(path).register_forward_pre_hook(_gate_columns(gate))
                stack.callback(hook.remove)
            stack.callback(
                block.register_forward_hook(_gate_block(gates.layer[:, index]), with_kwargs=True).remove
            )
        yield


@contextmanager
def masked(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Within this context the units that ``plan`` removes are gated off: the oracle for surgery."""
    device = next(model.parameters()).device
    with gated(model, Gates.from_plan(anatomy_of(model), plan, device=device)):
        yield


def _gate_columns(gate: Float[Tensor, "batch units"]) -> Callable[..., tuple[Tensor, ...]]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]  # batch × tokens × columns, or (batch·tokens) × columns
        width = x.shape[-1] // gate.shape[1]
        per_column = gate.to(x.dtype).repeat_interleave(width, dim=1)
        by_sample = x.reshape(gate.shape[0], -1, x.shape[-1])
        return ((by_sample * per_column[:, None, :]).reshape(x.shape), *inputs[1:])

    return hook


def _gate_block(gate: Float[Tensor, " batch"]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        # lerp is exact at both ends, so an open gate changes no bit and a shut one passes the input through.
        mixed = torch.lerp(before, after, gate.to(after.dtype).view(-1, *(1,) * (after.dim() - 1)))
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return hook
