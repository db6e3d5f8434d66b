"""Statistics and criteria against their definitions, computed naively: finite differences, everything stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, base_of, blocks_of
from cascade_ops.batches import sequential, take
from cascade_ops.errors import PlanError
from cascade_ops.gates import Gates, gated, masked
from cascade_ops.granularity import Granularity
from cascade_ops.loss import next_tokens, per_sample_loss
from cascade_ops.plan import PruningPlan
from cascade_ops.scoring import score
from cascade_ops.shards import Piece
from cascade_ops.statistics import ABS_GRADIENT, SQUARED_GRADIENT, Need, Statistics
from cascade_ops.surgery import prune
from cascade_ops.sweep import collect
from tests.factories import batch_for, classifier, gpt2, inputs_for, llama_like, logits_of, varied_plan

STEP = 1e-5
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: gpt2(n_layer=2, n_inner=6),
    "llama-gqa": lambda: llama_like(heads=6, kv_heads=2, num_hidden_layers=2, intermediate_size=5),
    "classifier": lambda: classifier(gpt2, n_layer=2, n_inner=6),
}
EACH = pytest.mark.parametrize("name", MODELS)
BY_SAMPLE = tuple[Tensor, ...]


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The whole model in float64: transformers' own RMSNorm computes in float32 whatever it is given, which
    would drown a difference quotient."""
    model.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, norm)
    return model


# ------------------------------------------------------------------------------- gradients of the gates


def gate_rows(gates: Gates, granularity: Granularity) -> tuple[Tensor, ...]:
    match granularity:
        case Granularity.LAYER:
            return (gates.layer,)
        case Granularity.CHANNEL:
            return gates.channel
        case _:
            return gates.head


def finite_differences(
    model: PreTrainedModel, batch: dict[str, Tensor], granularity: Granularity
) -> BY_SAMPLE:
    """∂ℓₙ/∂g of every sample by central differences: samples × units, per layer."""
    anatomy = anatomy_of(model)

    def losses(row: int, columns: list[int], value: float) -> Tensor:
        gates = Gates.ones(anatomy, dtype=torch.float64)
        gate_rows(gates, granularity)[row][:, columns] = value
        with torch.no_grad(), gated(model, gates):
            return per_sample_loss(model, batch)

    rows = []
    for row, units in enumerate(anatomy.units(granularity)):
        columns = []
        for unit in range(units):
            members = [unit]
            if granularity is Granularity.KV_GROUP:
                members = list(anatomy.layers[row].heads_of((unit,)))
            difference = losses(row, members, 1 + STEP) - losses(row, members, 1 - STEP)
            columns.append(difference / (2 * STEP))
        rows.append(torch.stack(columns, dim=1))
    return tuple(rows)


@EACH
@pytest.mark.parametrize("granularity", Granularity, ids=str)
def test_gate_gradients_are_the_slopes_of_each_samples_loss(name: str, granularity: Granularity) -> None:
    model = in_float64(MODELS[name]())
    batch = batch_for(model, samples=3, tokens=6)
    expected = finite_differences(model, batch, granularity)
    assert max(float(row.abs().max()) for row in expected) > 1e-3
    for sample in range(3):
        sums = collect(
            Piece.whole(model), take(batch, slice(sample, sample + 1)), frozenset({"gate_gradients"})
        ).sums
        for index in range(len(anatomy_of(model).layers)):
            row = (
                expected[0][sample, index : index + 1]
                if granularity is Granularity.LAYER
                else expected[index][sample]
            )
            torch.testing.assert_close(
                sums[ABS_GRADIENT, granularity, index], row.abs(), rtol=1e-6, atol=1e-9
            )
            torch.testing.assert_close(
                sums[SQUARED_GRADIENT, granularity, index], row.square(), rtol=1e-6, atol=1e-9
            )


@EACH
def test_taylor_and_fisher_are_means_over_samples(name: str) -> None:
    model = in_float64(MODELS[name]())
    batch = batch_for(model, samples=4, tokens=6)
    scores = score(model, sequential(batch, 3), ("taylor", "fisher"))
    for granularity in Granularity:
        for index, row in enumerate(finite_differences(model, batch, granularity)):
            taylor = scores["taylor", granularity].per_layer[index]
            fisher = scores["fisher", granularity].per_layer[index]
            torch.testing.assert_close(taylor, row.abs().mean(dim=0), rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(fisher, 0.5 * row.square().mean(dim=0), rtol=1e-6, atol=1e-9)


@EACH
def test_gates_differ_from_sample_to_sample(name: str) -> None:
    """One forward with other gates per row gives what separate forwards give: ablation relies on it."""
    model = MODELS[name]().double()
    inputs, anatomy = inputs_for(model, samples=3), anatomy_of(model)
    plans = [varied_plan(anatomy, granularity) for granularity in Granularity][1:]
    rows = [Gates.from_plan(anatomy, plan) for plan in plans]
    together = Gates(
        layer=torch.cat([gates.layer for gates in rows]),
        head=tuple(torch.cat(column) for column in zip(*(gates.head for gates in rows), strict=True)),
        channel=tuple(torch.cat(column) for column in zip(*(gates.channel for gates in rows), strict=True)),
    )
    with gated(model, together):
        mixed = logits_of(model, inputs)
    for sample, plan in enumerate(plans):
        with masked(model, plan):
            alone = logits_of(model, inputs)
        torch.testing.assert_close(mixed[sample], alone[sample], rtol=0, atol=1e-12)


def test_half_a_layer_gate_is_half_the_way() -> None:
    model = gpt2(n_layer=1, head="GPT2Model").double()
    inputs = inputs_for(model)
    seen: list[Tensor] = []
    hook = model.ln_f.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for value in (0.0, 0.5, 1.0):
        gates = Gates.ones(anatomy_of(model), dtype=torch.float64)
        gates.layer.fill_(value)
        with torch.no_grad(), gated(model, gates):
            model(**inputs)
    hook.remove()
    torch.testing.assert_close(seen[1], (seen[0] + seen[2]) / 2, rtol=0, atol=1e-12)


# ------------------------------------------------------------------- activation criteria, everything stored


def recorded(model: PreTrainedModel, batch: dict[str, Tensor], paths: dict[str, str]) -> dict[str, Tensor]:
    """Inputs (and for blocks outputs) of modules over the whole batch, flattened to tokens × width."""
    kept: dict[str, Tensor] = {}
    hooks = []

    def keep(label: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            kept[label] = args[0].detach().flatten(0, 1).double()
            out = output[0] if isinstance(output, tuple) else output
            kept[f"{label}.out"] = out.detach().flatten(0, 1).double()

        return hook

    for label, path in paths.items():
        hooks.append(base_of(model).get_submodule(path).register_forward_hook(keep(label)))
    with torch.no_grad():
        model(**{key: value for key, value in batch.items() if key != "labels"})
    for hook in hooks:
        hook.remove()
    return kept


def places(model: PreTrainedModel) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Module paths of each layer's block and output projections, and their weights as out × in."""
    paths, weights = {}, {}
    for index in range(2):
        if model.config.model_type == "llama":
            block = f"layers.{index}"
            parts = {"head": "self_attn.o_proj", "channel": "mlp.down_proj"}
        else:
            block = f"h.{index}"
            parts = {"head": "attn.c_proj", "channel": "mlp.c_proj"}
        paths[f"layer{index}"] = block
        for part, path in parts.items():
            paths[f"{part}{index}"] = f"{block}.{path}"
            weight = base_of(model).get_submodule(f"{block}.{path}").weight.detach().double()
            weights[f"{part}{index}"] = weight if model.config.model_type == "llama" else weight.T
    return paths, weights


def naive_columns(criterion: str, x: Tensor, weight: Tensor) -> Tensor:
    """Column by column, straight from the formulas."""
    columns = []
    for j in range(weight.shape[1]):
        w, values = weight[:, j], x[:, j]
        match criterion:
            case "magnitude":
                columns.append(torch.sqrt((w * w).sum()))
            case "wanda":
                columns.append((w.abs() * torch.sqrt((values * values).mean())).mean())
            case "flap":
                columns.append(((values - values.mean()) ** 2).mean() * (w * w).sum())
    return torch.stack(columns)


@EACH
@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "flap"])
def test_column_criteria_equal_their_formulas(name: str, criterion: str) -> None:
    model = MODELS[name]().double()
    batch = batch_for(model, samples=5)
    paths, weights = places(model)
    kept = recorded(model, batch, paths)
    scores = score(model, sequential(batch, 2), (criterion,))
    for index, layer in enumerate(anatomy_of(model).layers):
        attention = naive_columns(criterion, kept[f"head{index}"], weights[f"head{index}"])
        channels = naive_columns(criterion, kept[f"channel{index}"], weights[f"channel{index}"])
        heads = [attention[h * layer.head_dim : (h + 1) * layer.head_dim].sum() for h in range(layer.heads)]
        groups = [sum(heads[h] for h in layer.heads_of((g,))) for g in range(layer.kv_heads)]
        expected = {
            Granularity.CHANNEL: channels,
            Granularity.HEAD: torch.stack(heads),
            Granularity.KV_GROUP: torch.stack(groups),  # type: ignore[arg-type]
        }
        for granularity, row in expected.items():
            torch.testing.assert_close(
                scores[criterion, granularity].per_layer[index], row, rtol=1e-9, atol=0
            )
        whole = scores[criterion, Granularity.LAYER].per_layer[0][index]
        torch.testing.assert_close(whole, attention.sum() + channels.sum(), rtol=1e-9, atol=0)


@EACH
def test_block_influence_is_one_minus_the_mean_cosine(name: str) -> None:
    model = MODELS[name]().double()
    batch = batch_for(model, samples=5)
    kept = recorded(model, batch, places(model)[0])
    (row,) = score(model, sequential(batch, 2), ("block_influence",))[
        "block_influence", Granularity.LAYER
    ].per_layer
    for index in range(2):
        before, after = kept[f"layer{index}"], kept[f"layer{index}.out"]
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(before, after, strict=True)]
        assert float(row[index]) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-9)


def test_scores_of_a_ragged_model_follow_its_groups() -> None:
    """After heads went one by one, a group's score is still the sum over the heads that it has."""
    model = llama_like(heads=6, kv_heads=2).double()
    prune(model, PruningPlan.from_keep(Granularity.HEAD, [[0, 3, 4], [1, 2, 5], [0, 1, 2, 5]]))
    scores = score(model, [batch_for(model)], ("wanda",))
    for index, sizes in enumerate([(1, 2), (2, 1), (3, 1)]):
        heads = scores["wanda", Granularity.HEAD].per_layer[index]
        groups = scores["wanda", Granularity.KV_GROUP].per_layer[index]
        torch.testing.assert_close(groups, torch.stack([part.sum() for part in heads.split(sizes)]))


# ------------------------------------------------------------------------------------------ the monoid


KEYS = [("x", Granularity.HEAD, 0), ("x", Granularity.HEAD, 1), ("cos", Granularity.LAYER, 0)]
# Whole numbers: their float64 sums are exact, so the laws hold bit for bit.
WHOLE = st.lists(st.integers(-1000, 1000).map(float), min_size=3, max_size=3)


Drawn = tuple[int, int, dict[int, list[float]]]
DRAWN = st.tuples(st.integers(0, 9), st.integers(0, 99), st.dictionaries(st.integers(0, 2), WHOLE))


def built(drawn: Drawn) -> Statistics:
    samples, tokens, rows = drawn
    sums = {KEYS[at]: torch.tensor(row, dtype=torch.float64) for at, row in rows.items()}
    return Statistics(samples=samples, tokens=tokens, sums=sums)


def same(one: Statistics, other: Statistics) -> bool:
    return (
        (one.samples, one.tokens) == (other.samples, other.tokens)
        and one.sums.keys() == other.sums.keys()
        and all(torch.equal(value, other.sums[key]) for key, value in one.sums.items())
    )


@settings(max_examples=50, deadline=None)
@given(drawn=st.tuples(DRAWN, DRAWN, DRAWN))
def test_statistics_are_a_commutative_monoid(drawn: tuple[Drawn, Drawn, Drawn]) -> None:
    a, b, c = map(built, drawn)
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)
    assert same(a + Statistics.zero(), a)
    assert same(Statistics.zero() + a, a)


def test_adding_statistics_changes_neither() -> None:
    one, other = (
        Statistics(samples=1, tokens=2, sums={KEYS[0]: torch.ones(3, dtype=torch.float64)}) for _ in range(2)
    )
    total = one + other
    total.sums[KEYS[0]].zero_()
    assert float(one.sums[KEYS[0]].sum()) == float(other.sums[KEYS[0]].sum()) == 3


@pytest.mark.parametrize("need", ["moments", "projection", "block_cosine", "gate_gradients"])
def test_statistics_count_samples_and_tokens(need: Need) -> None:
    model = gpt2()
    batch = batch_for(model, samples=4, tokens=6)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :2] = 0
    for extra, tokens in (({}, 24), ({"attention_mask": mask}, 22)):
        found = collect(Piece.whole(model), {**batch, **extra}, frozenset({need}))
        assert (found.samples, found.tokens) == (4, tokens)
        assert all(value.dtype == torch.float64 for value in found.sums.values())


# ------------------------------------------------------------------------------------------ contexts


def hooks_of(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_masked_removes_its_hooks_after_an_exception() -> None:
    model = gpt2()
    dense = logits_of(model, inputs_for(model))
    with (
        pytest.raises(RuntimeError, match="inside"),
        masked(model, varied_plan(anatomy_of(model), Granularity.HEAD)),
    ):
        raise RuntimeError("inside")
    assert hooks_of(model) == 0
    assert torch.equal(logits_of(model, inputs_for(model)), dense)


def test_masked_refuses_a_plan_that_does_not_fit() -> None:
    model = gpt2()
    with pytest.raises(PlanError), masked(model, PruningPlan.from_keep(Granularity.HEAD, [[0]])):
        pass
    assert hooks_of(model) == 0


def test_masks_nest() -> None:
    """Two masks at once equal two cuts, whatever the order."""
    model = llama_like().double()
    inputs, anatomy = inputs_for(model), anatomy_of(model)
    heads, channels = varied_plan(anatomy, Granularity.HEAD), varied_plan(anatomy, Granularity.CHANNEL)
    with masked(model, heads), masked(model, channels):
        oracle = logits_of(model, inputs)
    prune(model, channels)
    prune(model, heads)
    torch.testing.assert_close(logits_of(model, inputs), oracle, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------ the loss


def test_language_model_loss_is_the_mean_over_predicted_tokens() -> None:
    model = gpt2().double()
    ids = inputs_for(model, samples=2, tokens=5)["input_ids"]
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    logits = logits_of(model, batch).log_softmax(dim=-1)
    expected = [
        -(logits[0, 2, ids[0, 3]] + logits[0, 3, ids[0, 4]]) / 2,
        -(logits[1, 0, ids[1, 1]] + logits[1, 1, ids[1, 2]] + logits[1, 2, ids[1, 3]]) / 3,
    ]
    with torch.no_grad():
        torch.testing.assert_close(per_sample_loss(model, batch), torch.stack(expected))
    assert next_tokens(batch)[0].tolist() == [-100, -100, int(ids[0, 3]), int(ids[0, 4]), -100]


def test_labels_of_minus_100_do_not_count() -> None:
    model = gpt2().double()
    batch = inputs_for(model, samples=2, tokens=5)
    labels = batch["input_ids"].clone()
    labels[:, :3] = -100
    logits = logits_of(model, batch).log_softmax(dim=-1)
    expected = [-(logits[n, 2, labels[n, 3]] + logits[n, 3, labels[n, 4]]) / 2 for n in range(2)]
    with torch.no_grad():
        found = per_sample_loss(model, {**batch, "labels": labels})
    torch.testing.assert_close(found, torch.stack(expected))


def test_classifier_loss_is_each_samples_cross_entropy() -> None:
    model = classifier(gpt2)
    batch = batch_for(model)
    with torch.no_grad():
        losses = per_sample_loss(model, batch)
        whole = model(**batch)
    expected = -whole.logits.log_softmax(dim=1)[torch.arange(7), batch["labels"]]
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(whole.loss, expected.mean())


def test_block_lists_are_the_models_own() -> None:
    model = gpt2()
    assert blocks_of(model) is model.transformer.h
