"""What every registered criterion promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, base_of, blocks_of
from cascade_ops.batches import sequential
from cascade_ops.criteria import CRITERIA
from cascade_ops.errors import DataError, UnknownNameError
from cascade_ops.granularity import Granularity
from cascade_ops.scoring import Scores, score
from tests.factories import CASES, HEAD_DIM, N_REP, batch_for, classifier, gpt2, llama_like

CRITERION = pytest.mark.parametrize("name", CRITERIA)
MODELS = pytest.mark.parametrize(
    "model_name",
    ["gpt2", "llama-n_rep=3", "qwen3-mqa", "opt-post-norm", "classifier-gpt2", "classifier-bert"],
)
EQUIVARIANT = tuple(name for name in CRITERIA if name != "random")
"""Random scores belong to a position, not to a unit."""
WIDTH = tuple(name for name in EQUIVARIANT if Granularity.KV_GROUP in CRITERIA[name].granularities)


def scored(model: PreTrainedModel, batch: dict[str, Tensor], *names: str, size: int = 100) -> Scores:
    return score(model, sequential(batch, size), names or tuple(CRITERIA))


def pairs(one: Scores, other: Scores) -> Iterator[tuple[str, Tensor, Tensor]]:
    assert one.keys() == other.keys()
    for key, scores in one.items():
        for layer, rows in enumerate(zip(scores.per_layer, other[key].per_layer, strict=True)):
            yield f"{key[0]}, {key[1]}, layer {layer}", *rows


def assert_close(one: Scores, other: Scores, tolerance: float = 1e-10) -> None:
    """Equal relative to the largest score of the layer."""
    for where, left, right in pairs(one, other):
        assert left.shape == right.shape, where
        assert float((left - right).abs().max()) <= tolerance * float(left.abs().max()), where


@CRITERION
@MODELS
def test_shape_finite_float64_and_deterministic(name: str, model_name: str) -> None:
    model = CASES[model_name].build()
    batch, anatomy = batch_for(model), anatomy_of(model)
    scores = scored(model, batch, name)
    assert {granularity for _, granularity in scores} == CRITERIA[name].granularities
    for (_, granularity), one in scores.items():
        assert (one.criterion, one.granularity) == (name, granularity)
        assert tuple(len(row) for row in one.per_layer) == anatomy.units(granularity)
        assert all(row.dtype == torch.float64 and torch.isfinite(row).all() for row in one.per_layer)
        for row in one.per_layer:
            alive = row[row != 0]  # a ReLU channel that never opens has exactly no gradient
            assert alive.unique().numel() == alive.numel() > 0, "ties on noise"
    for where, left, right in pairs(scores, scored(model, batch, name)):
        assert torch.equal(left, right), where


@MODELS
@pytest.mark.parametrize("size", [1, 3, 5])
def test_scores_do_not_depend_on_how_the_data_is_batched(model_name: str, size: int) -> None:
    model = CASES[model_name].build().double()
    batch = batch_for(model)
    assert_close(scored(model, batch), scored(model, batch, size=size))


@MODELS
def test_criteria_do_not_disturb_each_other(model_name: str) -> None:
    """All in one sweep give what each alone gives."""
    model = CASES[model_name].build()
    batch = batch_for(model)
    together = scored(model, batch)
    for name in CRITERIA:
        alone = scored(model, batch, name)
        for where, left, right in pairs({key: together[key] for key in alone}, alone):
            assert torch.equal(left, right), where


# ------------------------------------------------------------------------------------------ permutations


def shuffle_channels(model: PreTrainedModel, orders: list[Tensor]) -> None:
    """The same function with its feed-forward channels in another order."""
    with torch.no_grad():
        for block, order in zip(blocks_of(model), orders, strict=True):
            block.mlp.gate_proj.weight.copy_(block.mlp.gate_proj.weight[order])
            block.mlp.up_proj.weight.copy_(block.mlp.up_proj.weight[order])
            block.mlp.down_proj.weight.copy_(block.mlp.down_proj.weight[:, order])


def shuffle_groups(model: PreTrainedModel, orders: list[Tensor], n_rep: int) -> None:
    """The same function with its KV groups in another order (their query heads move with them)."""

    def rows(order: Tensor, width: int) -> Tensor:
        return (order[:, None] * width + torch.arange(width)).flatten()

    with torch.no_grad():
        for block, order in zip(blocks_of(model), orders, strict=True):
            attention = block.self_attn
            wide, narrow = rows(order, n_rep * HEAD_DIM), rows(order, HEAD_DIM)
            attention.q_proj.weight.copy_(attention.q_proj.weight[wide])
            attention.k_proj.weight.copy_(attention.k_proj.weight[narrow])
            attention.v_proj.weight.copy_(attention.v_proj.weight[narrow])
            attention.o_proj.weight.copy_(attention.o_proj.weight[:, wide])


def permuted(scores: Scores, granularity: Granularity, orders: list[Tensor], width: int = 1) -> Scores:
    """The scores with the units of ``granularity`` in another order, ``width`` units at a time."""
    moved = dict(scores)
    for key, one in scores.items():
        if key[1] is granularity:
            rows = (
                row.view(-1, width)[order].flatten() for row, order in zip(one.per_layer, orders, strict=True)
            )
            moved[key] = type(one)(
                granularity=granularity, criterion=key[0], per_layer=tuple(rows), samples=one.samples
            )
    return moved


def test_scores_move_with_their_channels() -> None:
    model = llama_like().double()
    batch, generator = batch_for(model), torch.Generator().manual_seed(5)
    before = scored(model, batch, *EQUIVARIANT)
    orders = [torch.randperm(n, generator=generator) for n in anatomy_of(model).units(Granularity.CHANNEL)]
    shuffle_channels(model, orders)
    assert_close(permuted(before, Granularity.CHANNEL, orders), scored(model, batch, *EQUIVARIANT))


@pytest.mark.parametrize("n_rep", [1, 2, 3])
def test_scores_move_with_their_heads_and_groups(n_rep: int) -> None:
    model = llama_like(heads=4 * n_rep, kv_heads=4).double()
    batch, generator = batch_for(model), torch.Generator().manual_seed(6)
    before = scored(model, batch, *EQUIVARIANT)
    orders = [torch.randperm(4, generator=generator) for _ in anatomy_of(model).layers]
    shuffle_groups(model, orders, n_rep)
    expected = permuted(before, Granularity.KV_GROUP, orders)
    expected = permuted(expected, Granularity.HEAD, orders, width=n_rep)
    assert_close(expected, scored(model, batch, *EQUIVARIANT))


# ------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("model_name", ["gpt2", "llama-n_rep=3", "opt", "gpt_neox"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_does_not_matter(model_name: str, side: str) -> None:
    model = CASES[model_name].build().double()
    batch = batch_for(model, samples=4)
    ids, mask = batch["input_ids"], torch.ones_like(batch["input_ids"])
    for row, padding in enumerate((3, 0, 1, 5)):
        where = slice(0, padding) if side == "left" else slice(ids.shape[1] - padding, None)
        mask[row, where] = 0
    other = torch.where(mask.bool(), ids, (ids + 11) % 40)
    one = scored(model, {"input_ids": ids, "attention_mask": mask}, *EQUIVARIANT)
    assert_close(one, scored(model, {"input_ids": other, "attention_mask": mask}, *EQUIVARIANT))


@pytest.mark.parametrize("model_name", ["gpt2", "llama-n_rep=3"])
def test_right_padding_adds_nothing(model_name: str) -> None:
    """Longer rows of padding give the same scores as no padding at all."""
    model = CASES[model_name].build().double()
    plain = batch_for(model, samples=4)
    padded = {
        "input_ids": nn.functional.pad(plain["input_ids"], (0, 5), value=7),
        "attention_mask": nn.functional.pad(torch.ones_like(plain["input_ids"]), (0, 5)),
    }
    assert_close(scored(model, plain, *EQUIVARIANT), scored(model, padded, *EQUIVARIANT))


def test_padding_of_the_text_front_end_adds_nothing() -> None:
    model = classifier(gpt2, front_end="text").double()
    ids = torch.randint(2, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1])
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    padded = {
        "input_ids": nn.functional.pad(ids, (0, 4), value=3),
        "attention_mask": nn.functional.pad(torch.ones_like(ids), (0, 4)),
        "labels": labels,
    }
    assert_close(scored(model, plain, *EQUIVARIANT), scored(model, padded, *EQUIVARIANT))


# ------------------------------------------------------------------------------------- the boosted group


def boost_groups(model: PreTrainedModel, groups: list[int], factor: float) -> None:
    """Make what one KV group of each layer adds to the residual stream ``factor``² times larger."""
    with torch.no_grad():
        for block, layer, group in zip(blocks_of(model), anatomy_of(model).layers, groups, strict=True):
            heads = layer.heads_of((group,))
            columns = torch.cat([torch.arange(h * HEAD_DIM, (h + 1) * HEAD_DIM) for h in heads])
            block.self_attn.o_proj.weight[:, columns] *= factor
            block.self_attn.v_proj.weight[group * HEAD_DIM : (group + 1) * HEAD_DIM] *= factor


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize("n_rep", [2, 3, 4, 7])
def test_a_group_that_was_made_important_ranks_first(name: str, n_rep: int) -> None:
    """Scores that confuse interleaved with contiguous query heads (as a known peer's do) fail this."""
    model = llama_like(heads=3 * n_rep, kv_heads=3)
    groups = [1, 0, 2]
    boost_groups(model, groups, factor=3.0)
    scores = scored(model, batch_for(model, samples=12), name)
    best = [int(row.argmax()) for row in scores[name, Granularity.KV_GROUP].per_layer]
    assert best == groups
    layers = anatomy_of(model).layers
    for row, layer, group in zip(scores[name, Granularity.HEAD].per_layer, layers, groups, strict=True):
        boosted = row[list(layer.heads_of((group,)))].mean()
        rest = row[[h for h in range(layer.heads) if h not in layer.heads_of((group,))]].mean()
        assert boosted > rest


@pytest.mark.parametrize(
    "name", [name for name in EQUIVARIANT if Granularity.LAYER in CRITERIA[name].granularities]
)
def test_a_layer_that_does_nothing_ranks_last(name: str) -> None:
    model = gpt2()
    with torch.no_grad():
        block = base_of(model).h[1]
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            projection.weight *= 1e-3
            projection.bias *= 1e-3
    (row,) = scored(model, batch_for(model), name)[name, Granularity.LAYER].per_layer
    assert int(row.argmin()) == 1


# ------------------------------------------------------------------------------------------ side effects


@CRITERION
def test_scoring_leaves_the_model_as_it_was(name: str) -> None:
    model = classifier(gpt2)
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    model.train()
    model.backbone.h[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    scored(model, batch_for(model), name)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_scoring_cleans_up_after_a_failure() -> None:
    model = classifier(gpt2).train()
    batch = batch_for(model)
    del batch["labels"]
    with pytest.raises(KeyError):
        scored(model, batch, "taylor", "wanda")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ------------------------------------------------------------------------------------------ the random floor


def test_random_scores_follow_the_seed() -> None:
    model = llama_like()
    one, same, other = (score(model, [], ("random",), seed=seed) for seed in (1, 1, 2))
    for (_, left, right), (_, _, different) in zip(pairs(one, same), pairs(one, other), strict=True):
        assert torch.equal(left, right)
        assert not torch.equal(left, different)
    rows = one["random", Granularity.CHANNEL].per_layer
    assert not torch.equal(rows[0], rows[1])


# ------------------------------------------------------------------------------------------ refusals


def test_an_unknown_criterion_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown criterion 'tailor'\. Did you mean 'taylor'\?"):
        score(gpt2(), [], ("tailor",))


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs])
def test_no_calibration_data_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        score(gpt2(), [], (name,))


@pytest.mark.parametrize("name", [name for name in CRITERIA if CRITERIA[name].needs])
def test_nan_in_the_recordings_is_an_error(name: str) -> None:
    model = classifier(gpt2)
    batch = batch_for(model)
    batch["signal"][2, 5] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        scored(model, batch, name)


def test_every_kv_layout_is_scored() -> None:
    for heads, kv_heads in N_REP.values():
        model = llama_like(heads=heads, kv_heads=kv_heads)
        scores = scored(model, batch_for(model, samples=2), "taylor", "wanda")
        for name in ("taylor", "wanda"):
            assert [len(row) for row in scores[name, Granularity.HEAD].per_layer] == [heads] * 3
            assert [len(row) for row in scores[name, Granularity.KV_GROUP].per_layer] == [kv_heads] * 3
