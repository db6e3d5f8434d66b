"""What every supported family promises. A new FamilySpec is right when these pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from cascade_ops.anatomy import CONFIG_KEY, anatomy_of, base_of, blocks_of
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.errors import PlanError, UnsupportedFamilyError
from cascade_ops.families import FAMILIES
from cascade_ops.gates import masked
from cascade_ops.granularity import Granularity
from cascade_ops.loss import per_sample_loss
from cascade_ops.plan import PruningPlan
from cascade_ops.recovery import lora_paths, trainable
from cascade_ops.schedule import Recovery
from cascade_ops.surgery import prune
from tests.factories import (
    CASES,
    HEAD_DIM,
    REPRESENTATIVES,
    VOCABULARY,
    assert_same_weights,
    batch_for,
    classifier,
    gpt2,
    inputs_for,
    llama_like,
    logits_of,
    varied_plan,
)

EVERY = pytest.mark.parametrize("name", CASES)
SOME = pytest.mark.parametrize("name", REPRESENTATIVES)
EVERY_CUT = pytest.mark.parametrize(
    ("name", "granularity"), [(name, cut) for name, case in CASES.items() for cut in case.cuts]
)
SOME_CUTS = pytest.mark.parametrize(
    ("name", "granularity"), [(name, cut) for name in REPRESENTATIVES for cut in CASES[name].cuts]
)
TOLERANCE = 1e-5
"""In float32."""
EXACT = 1e-12
"""In float64."""


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def cut_everything(model: nn.Module, seed: int = 0) -> None:
    """One cut of each granularity, each with other keep-sets in each layer."""
    for index, granularity in enumerate(
        (Granularity.HEAD, Granularity.CHANNEL, Granularity.LAYER, Granularity.KV_GROUP)
    ):
        if granularity not in dict(anatomy_of(model).refused):
            prune(model, varied_plan(anatomy_of(model), granularity, seed=seed + index))


# ------------------------------------------------------------------------------------------ the registry


def test_every_registered_model_type_has_a_factory() -> None:
    untested = set(FAMILIES) - {case.model_type for case in CASES.values()}
    assert not untested, f"add a case to tests/factories.py for {sorted(untested)}"


def test_representatives_cover_every_registered_model_type() -> None:
    assert {CASES[name].model_type for name in REPRESENTATIVES} == set(FAMILIES)


@SOME
def test_factories_build_what_they_say_and_the_same_bits_twice(name: str) -> None:
    case = CASES[name]
    one, other = case.build(), case.build()
    assert base_of(one).config.model_type == case.model_type
    assert_same_weights(one, other)


@EVERY
def test_what_a_family_refuses_is_refused_with_a_reason_and_nothing_changed(name: str) -> None:
    model = CASES[name].build()
    anatomy, before = anatomy_of(model), copy.deepcopy(model.state_dict())
    assert {granularity for granularity, _ in anatomy.refused} == set(CASES[name].refused)
    for granularity, reason in anatomy.refused:
        with pytest.raises(UnsupportedFamilyError, match="is not possible: ") as refusal:
            prune(model, varied_plan(anatomy, granularity))
        assert reason in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not hasattr(base_of(model).config, CONFIG_KEY)


# ------------------------------------------------------------------------------------------ the cut itself


@EVERY_CUT
def test_surgery_equals_masking(name: str, granularity: Granularity) -> None:
    model = CASES[name].build()
    inputs = inputs_for(model)
    anatomy = anatomy_of(model)
    plan = varied_plan(anatomy, granularity)
    dense = logits_of(model, inputs)
    with masked(model, plan):
        oracle = logits_of(model, inputs)
    assert torch.equal(logits_of(model, inputs), dense), "masked() left something behind"
    after = prune(model, plan)
    assert distance(logits_of(model, inputs), oracle) <= TOLERANCE
    if after != anatomy:
        assert distance(oracle, dense) > 1e-3, "the plan removes nothing that matters: the test is blind"


@SOME_CUTS
def test_identity_plan_changes_no_bit(name: str, granularity: Granularity) -> None:
    model = CASES[name].build()
    inputs = inputs_for(model)
    before, weights = logits_of(model, inputs), copy.deepcopy(model.state_dict())
    plan = PruningPlan.identity(granularity, anatomy_of(model))
    with masked(model, plan):
        assert torch.equal(logits_of(model, inputs), before)
    prune(model, plan)
    assert torch.equal(logits_of(model, inputs), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@SOME_CUTS
def test_anatomy_and_parameters_are_predicted(name: str, granularity: Granularity) -> None:
    model = CASES[name].build()
    dense = anatomy_of(model)
    assert dense.backbone_params == sum(p.numel() for p in blocks_of(model).parameters())
    assert dense.total_params == sum(p.numel() for p in model.parameters())
    plan = varied_plan(dense, granularity)
    predicted = dense.after(plan)
    returned = prune(model, plan)
    assert predicted == returned == anatomy_of(model) == anatomy_of(model.config)
    assert predicted.backbone_params == sum(p.numel() for p in blocks_of(model).parameters())
    assert predicted.total_params == sum(p.numel() for p in model.parameters())
    assert dense.params(plan) == predicted.backbone_params


@EVERY
def test_anatomy_of_the_config_alone_is_the_models(name: str) -> None:
    model = CASES[name].build()
    assert anatomy_of(model.config) == anatomy_of(model)
    cut_everything(model)
    assert anatomy_of(model.config) == anatomy_of(model)


@SOME
def test_cuts_of_all_granularities_add_up(name: str) -> None:
    """Each cut of an already cut model equals masking it; in float64, where only rounding is left."""
    model = CASES[name].build().double()
    inputs = inputs_for(model)
    cuts = CASES[name].cuts
    for seed, granularity in enumerate((*cuts, *reversed(cuts))):
        anatomy = anatomy_of(model)
        if granularity is Granularity.LAYER and len(anatomy.layers) == 1:
            continue
        plan = varied_plan(anatomy, granularity, seed=seed)
        with masked(model, plan):
            oracle = logits_of(model, inputs)
        prune(model, plan)
        assert distance(logits_of(model, inputs), oracle) <= EXACT, granularity


def test_query_heads_of_one_group_can_go_one_by_one() -> None:
    """Ragged groups: (3, 3) becomes (1, 3), (2, 1), (3,)."""
    model = llama_like(heads=6, kv_heads=2)
    inputs = inputs_for(model)
    plan = PruningPlan.from_keep(Granularity.HEAD, [[1, 3, 4, 5], [0, 2, 3], [3, 4, 5]])
    with masked(model, plan):
        oracle = logits_of(model, inputs)
    after = prune(model, plan)
    assert [layer.heads_per_kv for layer in after.layers] == [(1, 3), (2, 1), (3,)]
    assert [layer.ragged for layer in after.layers] == [True, True, False]
    assert distance(logits_of(model, inputs), oracle) <= TOLERANCE


def test_heads_and_kv_groups_are_the_same_under_multi_head_attention() -> None:
    by_head, by_group = gpt2(), gpt2()
    keep = [[0, 2], [1, 2, 3], [3]]
    prune(by_head, PruningPlan.from_keep(Granularity.HEAD, keep))
    prune(by_group, PruningPlan.from_keep(Granularity.KV_GROUP, keep))
    assert_same_weights(by_head, by_group)


def test_pruning_twice_is_pruning_once_by_the_composed_plan() -> None:
    twice, once = gpt2(), gpt2()
    for granularity in Granularity:
        first = varied_plan(anatomy_of(twice), granularity, seed=1)
        if granularity is Granularity.LAYER:
            first = PruningPlan.identity(granularity, anatomy_of(twice))
        prune(twice, first)
        second = varied_plan(anatomy_of(twice), granularity, seed=2)
        prune(twice, second)
        prune(once, first.compose(second))
    assert_same_weights(twice, once)
    assert anatomy_of(twice) == anatomy_of(once)


@pytest.mark.parametrize(
    ("granularity", "keep"),
    [
        (Granularity.HEAD, [[0], [0]]),
        (Granularity.HEAD, [[0], [], [0]]),
        (Granularity.CHANNEL, [[0], [0], [20]]),
        (Granularity.LAYER, [[]]),
        (Granularity.LAYER, [[3]]),
    ],
    ids=["too few layers", "emptied layer", "channel out of range", "no layer", "layer out of range"],
)
def test_a_refused_plan_changes_nothing(granularity: Granularity, keep: list[list[int]]) -> None:
    model = gpt2()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError):
        prune(model, PruningPlan.from_keep(granularity, keep))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not hasattr(model.config, CONFIG_KEY)


# ------------------------------------------------------------------------- padding, generation, depth


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        (name, cut)
        for name in REPRESENTATIVES
        if not name.startswith("classifier") and name != "vit"
        for cut in CASES[name].cuts
    ],
)
def test_surgery_equals_masking_with_left_padding(name: str, granularity: Granularity) -> None:
    model = CASES[name].build()
    inputs = inputs_for(model)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :4], mask[1, :1] = 0, 0
    inputs["attention_mask"] = mask
    plan = varied_plan(anatomy_of(model), granularity)
    with masked(model, plan):
        oracle = logits_of(model, inputs)
    prune(model, plan)
    pruned = logits_of(model, inputs)
    assert distance(pruned[mask.bool()], oracle[mask.bool()]) <= TOLERANCE


def generated(model: PreTrainedModel, inputs: dict[str, torch.Tensor], *, use_cache: bool) -> torch.Tensor:
    settings = GenerationConfig(
        max_new_tokens=8, do_sample=False, use_cache=use_cache, pad_token_id=1, eos_token_id=None
    )
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    with torch.no_grad():
        tokens: torch.Tensor = model.generate(
            inputs["input_ids"], attention_mask=mask, generation_config=settings
        )
    return tokens


GENERATING = tuple(name for name in CASES if CASES[name].generates)


@pytest.mark.parametrize("name", GENERATING)
def test_generation_with_a_cache_equals_generation_without(name: str, tmp_path: Path) -> None:
    """After all four granularities were cut (ragged heads included), live and reloaded."""
    model = CASES[name].build()
    inputs = inputs_for(model, samples=2, tokens=6)
    cut_everything(model)
    plain = generated(model, inputs, use_cache=False)
    assert plain.shape == (2, 14)
    assert int(plain.max()) < VOCABULARY
    assert torch.equal(generated(model, inputs, use_cache=True), plain)
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert torch.equal(generated(loaded, inputs, use_cache=True), plain)


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVES if CASES[name].generates])
def test_cached_steps_give_the_logits_of_one_pass(name: str) -> None:
    """Stricter than greedy tokens: the logits of each cached step, left padding included."""
    model = CASES[name].build()
    cut_everything(model)
    inputs = inputs_for(model, samples=2, tokens=7)
    ids, mask = inputs["input_ids"], torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    whole = logits_of(model, {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        start = model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
        cache, steps = start.past_key_values, [start.logits]
        for position in range(4, 7):
            step = model(
                input_ids=ids[:, position : position + 1],
                attention_mask=mask[:, : position + 1],
                past_key_values=cache,
                use_cache=True,
            )
            steps.append(step.logits)
    real = mask.bool()
    assert distance(torch.cat(steps, dim=1)[real], whole[real]) <= TOLERANCE


def test_gpt2_keeps_the_dense_depth_in_its_attention_scale(tmp_path: Path) -> None:
    """With scale_attn_by_inverse_layer_idx, layer 2 of the dense model stays scaled by 1/3 at position 0."""
    model = gpt2(scale_attn_by_inverse_layer_idx=True)
    prune(model, PruningPlan.from_keep(Granularity.LAYER, [[2]]))
    expected = HEAD_DIM**-0.5 / 3
    assert base_of(model).h[0].attn.scaling == pytest.approx(expected)
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert base_of(loaded).h[0].attn.scaling == pytest.approx(expected)
    inputs = inputs_for(model)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_layer_types_follow_their_layers(model_type: str, tmp_path: Path) -> None:
    """Mixed sliding and full attention: each remaining layer keeps its own kind, also after a reload."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = llama_like(
        model_type,
        num_hidden_layers=4,
        use_sliding_window=True,
        sliding_window=3,
        layer_types=list(kinds),
    )
    inputs = inputs_for(model)
    plan = PruningPlan.from_keep(Granularity.LAYER, [[0, 3]])
    with masked(model, plan):
        oracle = logits_of(model, inputs)
    prune(model, plan)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.num_hidden_layers == 2
    assert distance(logits_of(model, inputs), oracle) <= TOLERANCE
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert loaded.config.layer_types == ["sliding_attention", "full_attention"]
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    tokens = inputs_for(model, samples=2, tokens=6)
    assert torch.equal(generated(loaded, tokens, use_cache=True), generated(loaded, tokens, use_cache=False))


@SOME
def test_layers_are_renumbered_and_remember_where_they_came_from(name: str) -> None:
    model = CASES[name].build()
    after = prune(model, PruningPlan.from_keep(Granularity.LAYER, [[0, 2]]))
    assert [layer.source for layer in after.layers] == [0, 2]
    for position, block in enumerate(blocks_of(model)):
        numbers = {m.layer_idx for m in block.modules() if hasattr(m, "layer_idx")}
        assert numbers <= {position}
    again = prune(model, PruningPlan.from_keep(Granularity.LAYER, [[1]]))
    assert [layer.source for layer in again.layers] == [2]


# ------------------------------------------------------------------------------------------ save and load


@EVERY
def test_save_and_load_are_bit_exact(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    inputs = inputs_for(model)
    cut_everything(model)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_json_string()
    save_pruned(model, tmp_path / "model")
    assert model.config.to_json_string() == config, "saving changed the live config"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = load_pruned(tmp_path / "model")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert_same_weights(model, loaded)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))
    assert anatomy_of(loaded) == anatomy_of(model)
    assert all(p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())


@SOME
def test_a_dense_model_saves_and_loads_too(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert_same_weights(model, loaded)
    assert torch.equal(logits_of(loaded, inputs_for(model)), logits_of(model, inputs_for(model)))


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "qwen2-tied", "bert", "opt"])
def test_ties_survive(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    cut_everything(model)
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")

    def tied(one: PreTrainedModel) -> bool:
        return one.get_output_embeddings().weight is one.get_input_embeddings().weight

    assert tied(loaded) is tied(model) is (name != "gpt2-untied")
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


@SOME
def test_a_second_round_on_a_reloaded_model(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    inputs = inputs_for(model)
    cuts = CASES[name].cuts
    for seed, granularity in enumerate(
        (cut for cut in (Granularity.HEAD, Granularity.CHANNEL) if cut in cuts), start=3
    ):
        prune(model, varied_plan(anatomy_of(model), granularity, seed=seed))
    save_pruned(model, tmp_path / "first")
    loaded = load_pruned(tmp_path / "first")
    for seed, granularity in enumerate(cuts):
        plan = varied_plan(anatomy_of(loaded), granularity, seed=seed)
        with masked(loaded, plan):
            oracle = logits_of(loaded, inputs)
        prune(loaded, plan)
        prune(model, plan)
        assert distance(logits_of(loaded, inputs), oracle) <= TOLERANCE
    assert_same_weights(model, loaded)
    save_pruned(loaded, tmp_path / "second")
    assert torch.equal(logits_of(load_pruned(tmp_path / "second"), inputs), logits_of(loaded, inputs))


# ------------------------------------------------------------------------------------------ training


@SOME
def test_backward_reaches_every_weight_of_a_pruned_model(name: str) -> None:
    model = CASES[name].build()
    cut_everything(model)
    per_sample_loss(model, batch_for(model)).mean().backward()
    for path, parameter in blocks_of(model).named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.shape == parameter.shape
        assert torch.isfinite(parameter.grad).all()


@SOME
@pytest.mark.parametrize(
    ("dtype", "pruned"),
    [(torch.float32, False), (torch.float32, True), (torch.float64, True)],
    ids=["dense", "pruned", "pruned-float64"],
)
def test_lora_trains_and_merges(name: str, dtype: torch.dtype, pruned: bool) -> None:
    model = CASES[name].build().to(dtype)
    if pruned:
        cut_everything(model)
    batch = batch_for(model)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    before, names = logits_of(model, inputs), [n for n, _ in model.named_parameters()]
    modules = [type(m) for m in model.modules()]
    with trainable(model, Recovery(rank=3, alpha=6.0, unfreeze=()), 0):
        assert torch.equal(logits_of(model, inputs), before), "a fresh adapter must change nothing"
        learning = [p for p in model.parameters() if p.requires_grad]
        assert len(learning) == 2 * len(lora_paths_inside(model))
        optimizer = torch.optim.AdamW(learning, lr=0.02)
        for _ in range(2):
            optimizer.zero_grad()
            per_sample_loss(model, batch).mean().backward()
            optimizer.step()
        model.eval()
        trained = logits_of(model, inputs)
    assert distance(trained, before) > 1e-3
    assert distance(logits_of(model, inputs), trained) <= (TOLERANCE if dtype == torch.float32 else EXACT)
    assert [n for n, _ in model.named_parameters()] == names
    assert [type(m) for m in model.modules()] == modules, "adapter modules are left"
    assert all(p.requires_grad for p in model.parameters())


def lora_paths_inside(model: nn.Module) -> list[str]:
    """The modules that carry an adapter now."""
    return [path for path, module in model.named_modules() if hasattr(module, "get_base_layer")]


@SOME
def test_lora_reaches_every_projection_of_every_block(name: str) -> None:
    model = CASES[name].build()
    spec = FAMILIES[CASES[name].model_type]
    inside = len(spec.attention_inputs) + len(spec.mlp_inputs) + 2
    paths = lora_paths(model)
    assert len(set(paths)) == len(paths) == inside * len(anatomy_of(model).layers)
    with trainable(model, Recovery(rank=2), 0):
        assert sorted(lora_paths_inside(model)) == sorted(paths)


# ------------------------------------------------------------------------------------------ precision, refusal


@SOME
def test_bfloat16_runs(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    for parameter in model.parameters():  # as a checkpoint is loaded: rotary frequencies stay wide
        parameter.data = parameter.data.to(torch.bfloat16)
    cut_everything(model)
    inputs = inputs_for(model)
    logits = logits_of(model, inputs)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    save_pruned(model, tmp_path / "model")
    loaded = load_pruned(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits_of(loaded, inputs), logits)


def test_an_unknown_architecture_says_what_to_add() -> None:
    import transformers

    config = transformers.MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=VOCABULARY)
    with pytest.raises(UnsupportedFamilyError, match=r"'mpt'.*cascade_ops/families"):
        anatomy_of(transformers.MptForCausalLM(config))


def test_a_wrapped_model_says_how_to_unwrap_it() -> None:
    with pytest.raises(UnsupportedFamilyError, match="merge_and_unload"):
        anatomy_of(nn.DataParallel(gpt2()))


def test_a_projection_that_is_not_linear_is_named() -> None:
    model = gpt2()
    model.transformer.h[0].mlp.c_proj = nn.Sequential(nn.Linear(20, 16))
    with pytest.raises(UnsupportedFamilyError, match=r"mlp\.c_proj: expected nn.Linear or Conv1D"):
        anatomy_of(model)


def test_the_text_front_end_is_pruned_like_the_patch_front_end(tmp_path: Path) -> None:
    """Pooling ignores padding, so the oracle holds for whole logits."""
    model = classifier(gpt2, front_end="text")
    ids = torch.randint(2, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    for granularity in Granularity:
        plan = varied_plan(anatomy_of(model), granularity)
        with masked(model, plan):
            oracle = logits_of(model, inputs)
        prune(model, plan)
        assert distance(logits_of(model, inputs), oracle) <= TOLERANCE
    save_pruned(model, tmp_path / "model")
    assert torch.equal(logits_of(load_pruned(tmp_path / "model"), inputs), logits_of(model, inputs))
