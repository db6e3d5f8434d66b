"""Taylor importance as two other projects compute it, to be timed and compared with cascade_ops.score.

Both need the gradient of every weight, so they hold the model twice (``param_mix``: three times). Both score
coupled groups of weights: a channel with its rows of the input projections and its column of the output
projection; a KV group with its rows of Q, K and V and its columns of the output projection. In multi-head
attention a KV group is a head. Norms and biases do not count.
"""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cascade_ops.anatomy import ModelAnatomy, anatomy_of, base_of, blocks_of, family_of
from cascade_ops.batches import Batch, length_of, on_device, take
from cascade_ops.families import FamilySpec
from cascade_ops.layer import LayerAnatomy
from cascade_ops.linear import Linear, linear
from cascade_ops.loss import per_sample_loss
from cascade_ops.surgery import _rows

Mode = Literal["param_first", "param_mix"]
Salience = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerScores:
    """What a peer found, and how long it took.

    Attributes:
        kv_group: a score for each KV group, layer by layer; empty if heads were not asked for.
        channel: a score for each channel, layer by layer.
        build_seconds: before any data were seen (the dependency graph).
        score_seconds: forward, backward, and from gradients to scores.
    """

    kv_group: tuple[Float[Tensor, " _groups"], ...]
    channel: tuple[Float[Tensor, " _channels"], ...]
    build_seconds: float
    score_seconds: float


def torch_pruning_taylor(
    model: nn.Module, batch: Batch, *, heads: bool = True, micro: int | None = None
) -> PeerScores:
    """``GroupTaylorImportance`` of Torch-Pruning 1.6.1 (github.com/VainF/Torch-Pruning; Fang et al. 2023,
    arXiv 2301.12900; Molchanov et al. 2019): the mean over a group's matrices of Σ|w·∂ℓ/∂w|, divided by the
    layer's mean.

    The pruner is the package's own, as its examples for language models set it up, and is asked for what its
    ``step`` computes before it cuts; the group of the residual stream is built (the package does so by itself)
    but not scored. GPT-2 is scored on a copy made of ``nn.Linear`` (``plain_linears``); making the copy is
    not timed. ``micro``: samples at a time, the gradients accumulate; None: all at once.

    Raises:
        ValueError: the package cannot do it (see ``check_torch_pruning``), or left a layer out.
    """
    anatomy = anatomy_of(model)
    check_torch_pruning(model, anatomy, heads=heads)
    plain, batch = plain_linears(model), on_device(batch, model)
    blocks = blocks_of(plain)
    spec = family_of(base_of(plain).config)
    with weight_gradients(plain):
        began = time.perf_counter()
        pruner = _pruner(plain, batch, spec, anatomy)
        built = time.perf_counter()
        _mean_gradient(plain, batch, micro)
        channel_of = _owners(blocks, [projection.path for projection in spec.mlp_inputs])
        heads_of = _owners(blocks, [projection.path for projection in spec.attention_inputs]) if heads else {}
        channel, kv_group = _group_scores(pruner, anatomy, channel_of, heads_of)
        scored = time.perf_counter()
        del pruner
        gc.collect()  # the graph holds the traced activations, in cycles
    wanted = range(len(blocks))
    lost = [index for index in wanted if index not in channel or (heads and index not in kv_group)]
    if lost:
        raise ValueError(f"Torch-Pruning gave no complete scores for layers {lost}")
    return PeerScores(
        kv_group=tuple(kv_group[index] for index in wanted) if heads else (),
        channel=tuple(channel[index] for index in wanted),
        build_seconds=built - began,
        score_seconds=scored - built,
    )


def check_torch_pruning(model: nn.Module, anatomy: ModelAnatomy, *, heads: bool) -> None:
    """What Torch-Pruning 1.6.1 was found unable to do. Raises ValueError."""
    n_rep = max(max(layer.heads_per_kv) for layer in anatomy.layers)
    if n_rep == 2:
        raise ValueError("Torch-Pruning never finishes its groups with two query heads per KV head")
    if not heads:
        return
    if n_rep > 1:
        raise ValueError(
            f"{n_rep} query heads per KV head: Torch-Pruning's attention groups hold only as many query rows as "
            "there are key rows; ask for heads=False"
        )
    if any(projection.interleaved for projection in family_of(base_of(model).config).attention_inputs):
        raise ValueError("Torch-Pruning cannot index interleaved Q, K and V; ask for heads=False")


def _pruner(plain: nn.Module, batch: Batch, spec: FamilySpec, anatomy: ModelAnatomy) -> Any:
    import torch_pruning as tp

    base = base_of(plain)
    num_heads = {
        module: layer.heads
        for block, layer in zip(blocks_of(plain), anatomy.layers, strict=True)
        for projection in spec.attention_inputs
        for module in _linears(block, projection.path)
    }
    inside = set(base.modules())
    inputs: dict[str, Any] = {name: tensor[:1] for name, tensor in batch.items() if name != "labels"}
    with warnings.catch_warnings():
        # RMSNorm's weights, which it then handles as it should
        warnings.filterwarnings("ignore", "Unwrapped parameters", UserWarning)
        return tp.pruner.BasePruner(
            plain,
            inputs | ({"use_cache": False} if "input_ids" in inputs else {}),
            importance=tp.importance.GroupTaylorImportance(),
            num_heads=num_heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=0.5,
            ignored_layers=[m for m in plain.modules() if isinstance(m, nn.Linear) and m not in inside],
            in_channel_groups={},  # the defaults are shared between pruners
            out_channel_groups={},
            output_transform=lambda output: output.logits,
        )


def _owners(blocks: nn.ModuleList, paths: list[str]) -> dict[nn.Module, int]:
    """The layer of each linear map at one of these paths."""
    return {
        module: index
        for index, block in enumerate(blocks)
        for path in paths
        for module in _linears(block, path)
    }


def _linears(block: nn.Module, path: str) -> list[nn.Module]:
    module = block.get_submodule(path)
    return list(module.parts) if isinstance(module, Separate) else [module]


def _group_scores(
    pruner: Any, anatomy: ModelAnatomy, channel_of: Mapping[nn.Module, int], heads_of: Mapping[nn.Module, int]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Scores of channels and of heads by layer, as ``BasePruner._prune`` computes them."""
    channel, head = {}, {}
    groups = pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    )
    for group in groups:
        root = group[0].dep.target.module
        if root in channel_of:
            channel[channel_of[root]] = pruner.estimate_importance(group).cpu()
        elif root in heads_of:
            index = heads_of[root]
            turned = pruner._downstream_node_as_root_if_attention(group)
            if turned is not None:
                columns = pruner.estimate_importance(turned)
                head[index] = columns.view(anatomy.layers[index].heads, -1).mean(dim=1).cpu()
    return channel, head


class Separate(nn.Module):
    """Q, K and V as three linear maps where the model expects one: a split that Torch-Pruning cannot index."""

    def __init__(self, fused: nn.Linear, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        biases = fused.bias.chunk(parts) if fused.bias is not None else (None,) * parts
        for weight, bias in zip(fused.weight.chunk(parts), biases, strict=True):
            self.parts.append(_linear(weight, bias))

    def forward(self, x: Tensor) -> _Parts:
        return _Parts(part(x) for part in self.parts)


class _Parts(tuple[Tensor, ...]):
    """What ``tensor.split(…)`` would have returned."""

    def split(self, size: int, dim: int) -> tuple[Tensor, ...]:
        return self


def plain_linears(model: nn.Module) -> nn.Module:
    """The model itself or, if it has Conv1D, a copy with ``nn.Linear`` instead and with Q, K and V apart."""
    if not any(isinstance(module, Conv1D) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    fused = {
        block.get_submodule(projection.path): len(projection.holds)
        for block in blocks_of(plain)
        for projection in family_of(base_of(plain).config).attention_inputs
        if len(projection.holds) > 1
    }
    for name, module in list(plain.named_modules()):
        if isinstance(module, Conv1D):
            parent, _, last = name.rpartition(".")
            new = _linear(module.weight.T, module.bias)
            replacement = Separate(new, fused[module]) if module in fused else new
            setattr(plain.get_submodule(parent), last, replacement)
    return plain


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


def llm_pruner_taylor(
    model: nn.Module, batch: Batch, *, mode: Mode = "param_first", micro: int | None = None
) -> PeerScores:
    """LLM-Pruner's element-wise Taylor importance (Ma et al. 2023, arXiv 2305.11627, eqs. 3 to 5;
    github.com/horseee/LLM-Pruner), written anew: Σ|s| over a coupled group's weights (their ``sum`` grouping).

    With g the gradient of the mean loss and f = Σₙ gₙ²/N over samples, s = w·g for ``param_first`` and
    w·g − ½·w²·f for ``param_mix`` (their default), which runs backward once per sample and once more for all.
    Where query heads share a KV head they form one group with it. ``micro`` as above.

    Raises:
        ValueError: no such mode.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
    spec, layers = family_of(base_of(model).config), anatomy_of(model).layers
    batch = on_device(batch, model)
    with weight_gradients(model):
        began = time.perf_counter()
        squares = _squared_gradients(model, batch) if mode == "param_mix" else {}
        _mean_gradient(model, batch, micro)

        def salience(weight: Tensor) -> Tensor:
            assert weight.grad is not None
            first = weight * weight.grad
            return first if mode == "param_first" else first - 0.5 * weight * squares[weight] * weight

        with torch.no_grad():
            pairs = list(zip(blocks_of(model), layers, strict=True))
            kv_group = tuple(_kv_group_scores(spec, block, layer, salience) for block, layer in pairs)
            channel = tuple(_channel_scores(spec, block, layer, salience) for block, layer in pairs)
        scored = time.perf_counter()
    return PeerScores(kv_group=kv_group, channel=channel, build_seconds=0.0, score_seconds=scored - began)


def _mean_gradient(model: nn.Module, batch: Batch, micro: int | None) -> None:
    samples = length_of(batch)
    step = micro or samples
    for start in range(0, samples, step):
        (per_sample_loss(model, take(batch, slice(start, start + step))).sum() / samples).backward()


def _squared_gradients(model: nn.Module, batch: Batch) -> dict[Tensor, Tensor]:
    """``Σₙ gₙ²/N`` of every weight, in the weight's type as LLM-Pruner keeps it."""
    samples = length_of(batch)
    squares: dict[Tensor, Tensor] = {}
    for n in range(samples):
        per_sample_loss(model, take(batch, slice(n, n + 1))).mean().backward()
        for weight in model.parameters():
            if weight.grad is None:
                continue
            square = weight.grad.square_().div_(samples)
            weight.grad = None
            squares[weight] = squares[weight].add_(square) if weight in squares else square
    return squares


def _kv_group_scores(
    spec: FamilySpec, block: nn.Module, layer: LayerAnatomy, salience: Salience
) -> Float[Tensor, " groups"]:
    owner = torch.tensor(layer.kv_owner).repeat_interleave(layer.head_dim)
    scores = _sums(_by_input(block, spec.attention_output, salience), owner, layer.kv_heads)
    for projection in spec.attention_inputs:
        rows = _by_output(block, projection.path, salience)
        owner = torch.empty(len(rows), dtype=torch.long)
        for group in range(layer.kv_heads):
            kept = {"q": layer.heads_of((group,)), "k": (group,), "v": (group,)}
            owner[_rows(projection, layer, kept)] = group
        scores += _sums(rows, owner, layer.kv_heads)
    return scores.cpu()


def _channel_scores(
    spec: FamilySpec, block: nn.Module, layer: LayerAnatomy, salience: Salience
) -> Float[Tensor, " channels"]:
    scores = _by_input(block, spec.mlp_output, salience)
    for projection in spec.mlp_inputs:
        rows = _by_output(block, projection.path, salience)
        scores += rows.view(len(projection.holds), layer.channels).sum(dim=0)
    return scores.cpu()


def _by_output(block: nn.Module, path: str, salience: Salience) -> Float[Tensor, " out"]:
    return _magnitudes(linear(block, path), salience).sum(dim=1, dtype=torch.float32)


def _by_input(block: nn.Module, path: str, salience: Salience) -> Float[Tensor, " in"]:
    return _magnitudes(linear(block, path), salience).sum(dim=0, dtype=torch.float32)


def _magnitudes(module: Linear, salience: Salience) -> Float[Tensor, "out in"]:
    values = salience(module.weight).abs_()
    return values.T if isinstance(module, Conv1D) else values


def _sums(values: Tensor, owner: Tensor, groups: int) -> Tensor:
    """Sums of the values that have the same owner."""
    return values.new_zeros(groups).index_add_(0, owner.to(values.device), values)


@contextmanager
def weight_gradients(model: nn.Module) -> Iterator[None]:
    """Within this context every weight gets a gradient; afterwards none has one, and the model is as it was."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval()
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, required in wanted:
            parameter.requires_grad_(required)
        model.train(training)
