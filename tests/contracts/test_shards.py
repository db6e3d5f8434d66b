"""What every shard promises: the pieces of a model, run one after another, are the model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cascade_ops.anatomy import anatomy_of, base_of, blocks_of
from cascade_ops.batches import sequential
from cascade_ops.checkpoint import save_pruned
from cascade_ops.criteria import CRITERIA
from cascade_ops.granularity import Granularity
from cascade_ops.plan import PruningPlan
from cascade_ops.scoring import Scores, joined, needs_of, score, scores_from
from cascade_ops.shards import Layout, Piece, Shard, layout_of, load_shard, partition
from cascade_ops.statistics import Need, Statistics
from cascade_ops.surgery import prune
from cascade_ops.sweep import GRADIENT, backward, forward
from tests.factories import (
    CASES,
    REPRESENTATIVES,
    TINY,
    batch_for,
    classifier,
    gpt2,
    llama_like,
    varied_plan,
)
from workflows.scoring.driver import make_request, score_here

ALL = tuple(CRITERIA)
FORWARD: frozenset[Need] = needs_of(ALL) - {GRADIENT}
Batches = list[dict[str, Tensor]]


def stored(model: PreTrainedModel, folder: Path) -> Layout:
    save_pruned(model, folder / "model")
    return layout_of(folder / "model")


def by_hand(layout: Layout, shards: int, batches: Batches, *, seed: int = 0) -> Scores:
    """Every piece after the other, forward and back, and their scores side by side."""
    pieces = [load_shard(layout, shard) for shard in partition(layout, shards)]
    ups, downs = [[Statistics.zero() for _ in pieces] for _ in range(2)]
    for batch in batches:
        hidden: list[Tensor | None] = [None]
        for index, piece in enumerate(pieces[:-1]):
            found, above = forward(piece, batch, FORWARD, hidden[index])
            ups[index] = ups[index] + found
            hidden.append(above)
        gradient: Tensor | None = None
        for index, piece in reversed(list(enumerate(pieces))):
            needs = frozenset({GRADIENT}) | (FORWARD if piece.shard.is_last else frozenset())
            found, gradient = backward(piece, batch, needs, hidden[index], gradient)
            downs[index] = downs[index] + found
    together = [*(up.beside(down) for up, down in zip(ups[:-1], downs[:-1], strict=True)), downs[-1]]
    return joined(
        [
            scores_from(piece.model, piece.anatomy, statistics, ALL, seed=seed)
            for piece, statistics in zip(pieces, together, strict=True)
        ]
    )


def assert_same(expected: Scores, found: Scores) -> None:
    """Relative to the layer's largest; bit for bit was seen, but kernels may choose otherwise elsewhere."""
    assert expected.keys() == found.keys()
    for key, one in expected.items():
        assert found[key].samples == one.samples
        for layer, (row, again) in enumerate(zip(one.per_layer, found[key].per_layer, strict=True)):
            assert row.shape == again.shape, key
            distance = float((row - again).abs().max())
            assert distance <= 1e-6 * float(row.abs().max()), (*key, layer, distance)


def padded(model: PreTrainedModel, samples: int) -> dict[str, Tensor]:
    """Padding left, right and none, as much as all but two tokens."""
    batch = batch_for(model, samples=samples)
    if "input_ids" in batch:
        mask = torch.ones_like(batch["input_ids"])
        mask[0, :5] = 0
        mask[1, -7:] = 0
        mask[3, -1:] = 0
        batch["attention_mask"] = mask
    return batch


def cut(model: PreTrainedModel) -> None:
    """Other heads and channels in every layer, and a layer gone."""
    for granularity in (Granularity.HEAD, Granularity.CHANNEL):
        if granularity not in dict(anatomy_of(model).refused):
            prune(model, varied_plan(anatomy_of(model), granularity))
    depth = len(anatomy_of(model).layers)
    prune(model, PruningPlan.from_keep(Granularity.LAYER, [[i for i in range(depth) if i != 1]]))


@pytest.mark.parametrize("name", CASES)
def test_pieces_score_as_the_whole(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    layout, batches = stored(model, tmp_path), list(sequential(batch_for(model, samples=5), 3))
    expected = score(model, batches, ALL)
    for shards in (1, 2, 3):
        assert_same(expected, by_hand(layout, shards, batches))


DEEPER = {"gpt2": "n_layer", "classifier-gpt2": "n_layer"}


def deeper(name: str) -> PreTrainedModel:
    """Four layers, one of which ``cut`` takes away."""
    if name in TINY:
        return CASES[name].build(layers=4)
    setting = DEEPER.get(name.removesuffix("-untied").removesuffix("-inverse-layer-scale"))
    return CASES[name].build(**{setting or "num_hidden_layers": 4})


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_pieces_of_a_pruned_model_score_as_the_whole(name: str, tmp_path: Path) -> None:
    """With padding, where there is any."""
    model = deeper(name)
    cut(model)
    layout, batches = stored(model, tmp_path), list(sequential(padded(model, 5), 4))
    expected = score(model, batches, ALL)
    for shards in (1, 2, 3):
        assert_same(expected, by_hand(layout, shards, batches))


@pytest.mark.parametrize("name", ["gpt2", "llama-n_rep=3", "opt", "gpt_neox", "bert"])
def test_padding_passes_every_boundary(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    layout, batch = stored(model, tmp_path), padded(model, 4)
    expected = score(model, [batch], ALL)
    found = by_hand(layout, 3, [batch])
    assert_same(expected, found)
    unpadded = by_hand(layout, 3, [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])}])
    for key in (("taylor", Granularity.HEAD), ("wanda", Granularity.CHANNEL)):
        assert not torch.equal(found[key].per_layer[2], unpadded[key].per_layer[2]), "the mask does nothing"


@pytest.mark.parametrize(("name", "shards"), [("gpt2", 5), ("gpt_neox", 2), ("opt", 3), ("llama-n_rep=3", 4)])
def test_a_sweep_in_one_process_scores_as_the_whole(name: str, shards: int, tmp_path: Path) -> None:
    setting = DEEPER.get(name, "num_hidden_layers")
    model = CASES[name].build(**{setting: 5})
    layout, batches = stored(model, tmp_path), list(sequential(batch_for(model), 2))
    found = score_here(make_request(layout, batches, ALL), shards=shards).scores
    expected = score(model, batches, ALL)
    assert_same(expected, found)
    for key, one in expected.items():
        for row, again in zip(one.per_layer, found[key].per_layer, strict=True):
            assert row.argsort(stable=True).tolist() == again.argsort(stable=True).tolist(), key


def test_bfloat16_passes_every_boundary(tmp_path: Path) -> None:
    """Weights are converted piece by piece as they would be at once."""
    model = llama_like(num_hidden_layers=4)
    layout, batches = stored(model, tmp_path), list(sequential(batch_for(model), 3))
    found = score_here(make_request(layout, batches, ALL, dtype=torch.bfloat16), shards=3).scores
    assert_same(score(model.bfloat16(), batches, ALL), found)


# ------------------------------------------------------------------------------------------ what a piece is


def names_of(model: PreTrainedModel) -> set[str]:
    return set(model.state_dict())


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_piece_has_its_weights_and_nothing_else(name: str, shards: int, tmp_path: Path) -> None:
    """What belongs elsewhere is NaN and has no memory; what belongs here has the model's bits."""
    model = CASES[name].build()
    layout, whole = stored(model, tmp_path), model.state_dict()
    prefix = next(n for n, module in model.named_modules() if module is blocks_of(model)) + "."
    missing = names_of(model)
    for shard in partition(layout, shards):
        piece, own = load_shard(layout, shard), set(layout.names(shard))
        assert len(blocks_of(piece.model)) == len(piece.anatomy.layers) == shard.depth
        assert [layer.source for layer in piece.anatomy.layers] == list(range(shard.first, shard.stop))
        missing -= own
        for local, tensor in piece.model.state_dict().items():
            name_ = local
            if local.startswith(prefix):
                index, _, rest = local.removeprefix(prefix).partition(".")
                name_ = f"{prefix}{int(index) + shard.first}.{rest}"
                assert name_ in own, "a block without its weights"
            if name_ in own:
                assert torch.equal(tensor, whole[name_]), name_
            else:
                assert torch.isnan(tensor).all(), name_
                assert tensor.untyped_storage().nbytes() == tensor.itemsize, "NaN takes memory"
        assert not any(parameter.requires_grad for parameter in piece.model.parameters())
        assert not piece.model.training
    assert not missing, "belongs to no shard"


@pytest.mark.parametrize("name", ["gpt2", "qwen2-tied", "opt", "bert"])
def test_tied_weights_are_at_both_ends(name: str, tmp_path: Path) -> None:
    model = CASES[name].build()
    layout = stored(model, tmp_path)
    first, last = (load_shard(layout, shard) for shard in partition(layout, 2))
    embedding = base_of(model).get_input_embeddings().weight
    assert torch.equal(base_of(first.model).get_input_embeddings().weight, embedding)
    assert torch.equal(last.model.get_output_embeddings().weight, embedding)
    assert torch.isnan(first.model.get_output_embeddings().weight).all()
    assert torch.isnan(base_of(last.model).get_input_embeddings().weight).all()


def test_a_whole_model_in_memory_is_one_piece() -> None:
    model = gpt2()
    piece = Piece.whole(model)
    assert piece.model is model
    assert (piece.shard.is_first, piece.shard.is_last, piece.shard.depth) == (True, True, 3)


def test_dividing_leaves_the_layout_as_it_was(tmp_path: Path) -> None:
    layout = stored(llama_like(), tmp_path)
    before = layout.config.to_dict()
    for shard in partition(layout, 3):
        load_shard(layout, shard)
    assert layout.config.to_dict() == before


# ------------------------------------------------------------------------------------------ what is left behind


class Watched:
    """Weak references to what blocks give out, by a hook on each."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.seen: list[weakref.ref[Tensor]] = []
        for block in blocks_of(model):
            for module in block.modules():
                module.register_forward_hook(self._note)

    def _note(self, module: Any, args: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor):
                self.seen.append(weakref.ref(tensor))

    def alive(self, *but: Tensor) -> int:
        """How many there still are, but for these."""
        found = (reference() for reference in self.seen)
        return sum(one is not None and not any(one is other for other in but) for one in found)


BUILDS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "llama": llama_like,
    "classifier": lambda: classifier(gpt2),
    "opt": CASES["opt"].build,
    "gpt_neox": CASES["gpt_neox"].build,
    "bert": CASES["bert"].build,
}


@pytest.mark.parametrize("name", BUILDS)
def test_no_activation_outlives_its_pass(name: str, tmp_path: Path) -> None:
    """Without the garbage collector: a worker's memory must not wait for it."""
    model = BUILDS[name]()
    layout, batch = stored(model, tmp_path), batch_for(model, samples=3)
    lower, upper = (load_shard(layout, shard) for shard in partition(layout, 2))
    watched = [Watched(piece.model) for piece in (lower, upper)]
    gc.collect()
    gc.disable()
    try:
        _, hidden = forward(lower, batch, FORWARD)
        _, gradient = backward(upper, batch, needs_of(ALL), hidden)
        backward(lower, batch, frozenset({GRADIENT}), None, gradient)
        assert all(one.seen for one in watched)
        assert [one.alive(hidden, gradient) for one in watched] == [0, 0]
        del hidden, gradient
        assert [one.alive() for one in watched] == [0, 0]
    finally:
        gc.enable()


def tensors_of_python() -> list[Tensor]:
    # By type: isinstance asks objects for their class, and some warn when they are asked.
    return [one for one in gc.get_objects() if issubclass(type(one), Tensor)]


@pytest.mark.parametrize("needs", [FORWARD, needs_of(ALL)], ids=["forward", "backward"])
def test_repeated_passes_leave_no_tensors(needs: frozenset[Need], tmp_path: Path) -> None:
    model = llama_like()
    layout, batch = stored(model, tmp_path), batch_for(model, samples=3)
    piece = load_shard(layout, Shard(first=0, stop=3, layers=3))

    def tensors() -> int:
        return len(tensors_of_python())

    def once() -> None:
        if GRADIENT in needs:
            backward(piece, batch, needs)
        else:
            forward(piece, batch, needs)

    once()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        for _ in range(3):
            once()
        assert tensors() <= before
    finally:
        gc.enable()


def test_a_failed_pass_leaves_no_hooks_and_no_graph(tmp_path: Path) -> None:
    model = classifier(gpt2)
    layout, batch = stored(model, tmp_path), batch_for(model)
    del batch["labels"]
    piece = load_shard(layout, Shard(first=0, stop=3, layers=3))
    with pytest.raises(KeyError):
        backward(piece, batch, needs_of(ALL))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in piece.model.modules())
    gc.collect()
    assert not [one for one in tensors_of_python() if one.grad_fn is not None]
