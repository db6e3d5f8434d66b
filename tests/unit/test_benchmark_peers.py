from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import peers, random_checkpoint
from cascade_ops.batches import Batch
from cascade_ops.checkpoint import load_pruned
from cascade_ops.granularity import Granularity
from cascade_ops.scoring import score
from tests import factories

HEADS, LAYERS, VOCABULARY = 8, 4, 512
CHANNELS = {"llama": 688, "gpt2": 1024}


def small(name: str, *, kv_heads: int = HEADS) -> PreTrainedModel:
    """256 wide, as initialised: a smaller model leaves too few units to correlate."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    n_embd=256,
                    n_head=HEADS,
                    n_layer=LAYERS,
                    vocab_size=VOCABULARY,
                    n_positions=64,
                    bos_token_id=0,
                    eos_token_id=0,
                )
            )
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=256,
                num_attention_heads=HEADS,
                num_key_value_heads=kv_heads,
                intermediate_size=CHANNELS["llama"],
                num_hidden_layers=LAYERS,
                vocab_size=VOCABULARY,
            )
        )


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    built = small(request.param)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    yield built
    assert all(parameter.grad is None and parameter.requires_grad for parameter in built.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in built.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())


@pytest.fixture(scope="module")
def batch() -> Batch:
    return {"input_ids": torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(1))}


def spearman(one: Tensor, other: Tensor) -> float:
    return float(stats.spearmanr(one, other).statistic)


def check(found: peers.PeerScores, model: PreTrainedModel, batch: Batch) -> None:
    channels = CHANNELS[model.config.model_type]
    assert [tuple(row.shape) for row in found.kv_group] == [(HEADS,)] * LAYERS
    assert [tuple(row.shape) for row in found.channel] == [(channels,)] * LAYERS
    assert all(torch.isfinite(row).all() and (row > 0).all() for row in (*found.kv_group, *found.channel))
    assert found.score_seconds > 0
    ours = score(model, [batch], ("taylor",))["taylor", Granularity.CHANNEL].per_layer
    assert all(spearman(*rows) > 0.2 for rows in zip(found.channel, ours, strict=True))


@pytest.mark.parametrize("mode", ["param_first", "param_mix"])
def test_llm_pruner_agrees_with_gates_on_which_channels_matter(
    model: PreTrainedModel, batch: Batch, mode: peers.Mode
) -> None:
    check(peers.llm_pruner_taylor(model, batch, mode=mode), model, batch)


def test_torch_pruning_agrees_with_gates_on_which_channels_matter(
    model: PreTrainedModel, batch: Batch
) -> None:
    pytest.importorskip("torch_pruning")
    found = peers.torch_pruning_taylor(model, batch)
    check(found, model, batch)
    assert found.build_seconds > 0


def test_both_peers_see_the_same_groups(model: PreTrainedModel, batch: Batch) -> None:
    pytest.importorskip("torch_pruning")
    packaged, plain = peers.torch_pruning_taylor(model, batch), peers.llm_pruner_taylor(model, batch)
    pairs = zip((*packaged.kv_group, *packaged.channel), (*plain.kv_group, *plain.channel), strict=True)
    for normalised, sums in pairs:
        torch.testing.assert_close(normalised, sums / sums.mean(), rtol=1e-4, atol=1e-5)


def test_gradients_accumulate_over_micro_batches(model: PreTrainedModel, batch: Batch) -> None:
    whole, parts = (peers.llm_pruner_taylor(model, batch, micro=micro) for micro in (None, 3))
    for one, other in zip(whole.channel, parts.channel, strict=True):
        torch.testing.assert_close(one, other)


def test_query_heads_that_share_keys_are_one_group(batch: Batch) -> None:
    model = small("llama", kv_heads=2)
    found = peers.llm_pruner_taylor(model, batch)
    assert [tuple(row.shape) for row in found.kv_group] == [(2,)] * LAYERS
    with peers.weight_gradients(model):
        model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        attention = model.model.layers[1].self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        q, k, v, o = ((p.weight * p.weight.grad).abs().detach() for p in projections)
    expected = [
        q[128 * g : 128 * (g + 1)].sum()
        + k[32 * g : 32 * (g + 1)].sum()
        + v[32 * g : 32 * (g + 1)].sum()
        + o[:, 128 * g : 128 * (g + 1)].sum()
        for g in range(2)
    ]
    torch.testing.assert_close(found.kv_group[1], torch.stack(expected))


def test_the_second_order_term_is_half_the_squared_gradients() -> None:
    model = factories.gpt2()
    batch = factories.batch_for(model, samples=2)
    found = peers.llm_pruner_taylor(model, batch, mode="param_mix")
    gradients = []
    for n in range(2):
        with peers.weight_gradients(model):
            ids = batch["input_ids"][n : n + 1]
            model(input_ids=ids, labels=ids).loss.backward()
            weights: list[nn.Parameter] = [
                model.transformer.h[0].mlp.c_fc.weight,
                model.transformer.h[0].mlp.c_proj.weight,
            ]
            gradients.append([weight.grad.clone() for weight in weights if weight.grad is not None])
    expected = torch.zeros(20)
    for axis, weight, one, two in zip((0, 1), weights, *gradients, strict=True):
        first, second = weight * (one + two) / 2, weight**2 * (one**2 + two**2) / 2
        expected += (first - second / 2).abs().sum(dim=axis).detach()
    torch.testing.assert_close(found.channel[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", factories.REPRESENTATIVES)
def test_llm_pruner_scores_every_family(name: str) -> None:
    model = factories.CASES[name].build()
    found = peers.llm_pruner_taylor(model, factories.batch_for(model))
    assert all(torch.isfinite(row).all() and (row >= 0).all() for row in (*found.kv_group, *found.channel))


@pytest.mark.parametrize(("kv_heads", "heads"), [(4, False), (2, True)])
def test_torch_pruning_is_not_asked_for_what_it_cannot_do(kv_heads: int, heads: bool, batch: Batch) -> None:
    with pytest.raises(ValueError, match="per KV head"):
        peers.torch_pruning_taylor(small("llama", kv_heads=kv_heads), batch, heads=heads)


def test_frozen_weights_stay_frozen_and_training_goes_on() -> None:
    model = factories.gpt2().train()
    model.transformer.wte.weight.requires_grad_(False)
    peers.llm_pruner_taylor(model, factories.batch_for(model))
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["transformer.wte.weight"]


@pytest.mark.parametrize("name", ["gpt2", "llama-n_rep=3", "qwen2-tied", "gpt_neox", "opt", "bert"])
def test_a_random_checkpoint_is_the_same_in_one_file_and_in_many(name: str, tmp_path: Path) -> None:
    config = factories.CASES[name].build().config
    many = random_checkpoint.write_checkpoint(config, tmp_path / "many", shard_bytes=2000)
    one = random_checkpoint.write_checkpoint(config, tmp_path / "one")
    assert (many.files > 3, one.files) == (True, 1)
    model = load_pruned(tmp_path / "many")
    factories.assert_same_weights(model, load_pruned(tmp_path / "one"))
    assert sum(parameter.numel() for parameter in model.parameters()) == one.parameters
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        if tensor.dim() < 2:
            assert (tensor == (0 if key.endswith("bias") else 1)).all(), key
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == many.nbytes == one.nbytes


def test_random_weights_are_normal_and_differ_between_tensors_and_seeds(tmp_path: Path) -> None:
    draw = random_checkpoint.Draw(name="a", shape=(600, 1000), std=0.02)
    chunks = {
        key: torch.cat([torch.from_numpy(chunk.copy()) for chunk in random_checkpoint.values(*key)])
        for key in [
            (draw, 0),
            (draw, 1),
            (random_checkpoint.Draw(name="b", shape=draw.shape, std=0.02), 0),
        ]
    }
    values = torch.stack([bits.view(torch.bfloat16).double() for bits in chunks.values()])
    assert values.std(dim=1).tolist() == pytest.approx([0.02] * 3, rel=0.01)
    assert values.mean(dim=1).abs().max() < 1e-4
    assert (torch.corrcoef(values) - torch.eye(3)).abs().max() < 0.01
    kurtosis = (values / 0.02).pow(4).mean(dim=1)
    assert kurtosis.tolist() == pytest.approx([3.0] * 3, rel=0.03)


def test_a_random_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = SimpleNamespace(free=10**6)
    monkeypatch.setattr(random_checkpoint.shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(OSError, match=r"needed, 0\.00 GB free"):
        random_checkpoint.write_checkpoint(factories.gpt2().config, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_random_checkpoint_replaces_no_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no model folder"):
        random_checkpoint.write_checkpoint(factories.gpt2().config, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
