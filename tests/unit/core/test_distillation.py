"""Distillation: the divergence against a plain softmax, the cache against damage, a student that learns."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from cascade_ops import distillation as module
from cascade_ops.anatomy import anatomy_of
from cascade_ops.distillation import NUMBER, TeacherCache, cache_teacher, divergence, numbered
from cascade_ops.errors import CheckpointError, ConfigError
from cascade_ops.loss import IGNORE, next_tokens, per_sample_loss
from cascade_ops.plan import PruningPlan
from cascade_ops.recovery import recover
from cascade_ops.schedule import Distillation, Recovery
from cascade_ops.surgery import prune
from tests.factories import VOCABULARY, batch_for, classifier, gpt2, llama_like, perturbed


def diagnoser() -> PreTrainedModel:
    return classifier(gpt2)


def rows_of(logits: Tensor, top: int, temperature: float) -> dict[str, Tensor]:
    values, chosen = logits.topk(top)
    rest = (logits / temperature).scatter(-1, chosen, -math.inf).logsumexp(-1)
    return {"logits": values, "index": chosen.int(), "rest": rest}


@given(
    classes=st.integers(2, 9),
    share=st.floats(0.1, 1.0),
    temperature=st.floats(0.5, 8.0),
    scale=st.floats(0.1, 30.0),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_divergence_is_that_of_the_kept_classes_and_the_rest_as_one(
    classes: int, share: float, temperature: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        scale * torch.randn(2, 3, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    top = max(1, round(share * classes))
    found = divergence(student, rows_of(teacher, top, temperature), temperature)
    p, q = ((logits / temperature).softmax(-1) for logits in (teacher, student))
    chosen = teacher.topk(top).indices
    if top < classes:
        p, q = (
            torch.cat([x.gather(-1, chosen), x.scatter(-1, chosen, 0).sum(-1, keepdim=True)], -1)
            for x in (p, q)
        )
    expected = (p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log())).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_divergence_of_all_classes_is_torchs_and_so_is_its_gradient() -> None:
    teacher = torch.randn(4, 7, dtype=torch.float64)
    student = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    rows = rows_of(teacher[:, None], 7, 3.0)
    found = divergence(student, rows, 3.0)[:, 0]
    expected = kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda x: divergence(x, rows_of(teacher[:, None], 4, 3.0), 3.0), (student,)
    )


@pytest.mark.parametrize("top", [3, VOCABULARY])
def test_a_language_models_loss_is_over_the_tokens_that_count(tmp_path: Path, top: int) -> None:
    teacher, student = llama_like(), perturbed(llama_like(), seed=1)
    data = batch_for(teacher, samples=5, tokens=9)
    data["attention_mask"] = torch.ones_like(data["input_ids"])
    data["attention_mask"][1, 6:] = 0
    settings = Distillation(weight=0.3, temperature=2.0, top=top)
    cache = cache_teacher(teacher, data, tmp_path / "t", settings, batch_size=2)
    with torch.no_grad():
        found = cache.loss(settings)(student, numbered(data))
        theirs, mine = (model(**data).logits for model in (teacher, student))
    counted = next_tokens(data) != IGNORE
    distance = divergence(mine, rows_of(theirs, top, 2.0), 2.0) * counted
    expected = 0.7 * per_sample_loss(student, data) + 0.3 * 4 * distance.sum(1) / counted.sum(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_teacher_itself_has_nothing_to_learn(tmp_path: Path) -> None:
    teacher = gpt2()
    data = batch_for(teacher, samples=6, tokens=8)
    settings = Distillation(weight=1.0, hidden=1.0, top=5)
    cache = cache_teacher(teacher, data, tmp_path / "t", settings, keep_layers=[0, 1, 2])
    loss = cache.loss(settings)(teacher, numbered(data))
    assert loss.abs().max() < 1e-6
    gradients = torch.autograd.grad(loss.sum(), list(teacher.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-4


def test_hidden_states_of_surviving_blocks_are_compared(tmp_path: Path) -> None:
    teacher = gpt2()
    student = copy.deepcopy(teacher)
    prune(student, PruningPlan.from_keep("layer", [[0, 2]]))
    data = batch_for(teacher, samples=4, tokens=8)
    plain, both = Distillation(), Distillation(hidden=0.5)
    sources = [layer.source for layer in anatomy_of(student).layers]
    assert sources == [0, 2]
    cache = cache_teacher(teacher, data, tmp_path / "t", both, keep_layers=sources)
    with torch.no_grad():
        added = cache.loss(both)(student, numbered(data)) - cache.loss(plain)(student, numbered(data))
        outputs = []
        for model, positions in ((teacher, (0, 2)), (student, (0, 1))):
            with module.block_outputs(model, [0, 2]) as kept:
                model(**data)
            outputs.append([kept[0], kept[2]])
            assert len(kept) == len(positions)
    ratios = [
        (mine - theirs).square().flatten(1).mean(1) / theirs.square().flatten(1).mean(1)
        for theirs, mine in zip(*outputs, strict=True)
    ]
    torch.testing.assert_close(added, 0.5 * torch.stack(ratios).mean(0), rtol=1e-4, atol=1e-6)
    assert ratios[0].max() < 1e-6 < ratios[1].min(), "block 0 is the same in both, block 2 has lost its input"


def test_samples_are_found_in_any_order_and_over_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 1)
    teacher = diagnoser()
    data = batch_for(teacher, samples=11)
    seen: list[tuple[int, int]] = []
    cache = cache_teacher(
        teacher,
        data,
        tmp_path / "t",
        Distillation(),
        batch_size=3,
        progress=lambda phase, done, total, **figures: seen.append((done, total)),
    )
    assert seen == [(3, 11), (6, 11), (9, 11), (11, 11)]
    assert len(list((tmp_path / "t").glob("part-*.arrow"))) == 4
    order = torch.tensor([10, 0, 5, 5, 3])
    again = pickle.loads(pickle.dumps(cache)).rows(order)
    with torch.no_grad():
        logits = teacher(**{name: t for name, t in data.items() if name != "labels"}).logits
    values, chosen = logits.topk(logits.shape[-1])
    torch.testing.assert_close(again["logits"][:, 0], values[order])
    assert torch.equal(again["index"][:, 0].long(), chosen[order])
    assert (again["rest"] == -math.inf).all()


@pytest.mark.parametrize("what", ["flipped", "shorter", "missing", "index", "version", "nothing"])
def test_a_damaged_cache_is_refused(tmp_path: Path, what: str) -> None:
    teacher, folder = diagnoser(), tmp_path / "t"
    cache_teacher(teacher, batch_for(teacher, samples=4), folder, Distillation())
    part, index = folder / "part-00000.arrow", folder / "teacher.json"
    if what == "flipped":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif what == "shorter":
        part.write_bytes(part.read_bytes()[:-9])
    elif what == "missing":
        part.unlink()
    elif what == "index":
        index.write_text(index.read_text()[:-20])
    elif what == "version":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"schema": "cascade.teacher/0"}))
    else:
        folder = tmp_path / "none"
    with pytest.raises(CheckpointError, match=str(folder)):
        TeacherCache.open(folder)


def test_a_teacher_that_fails_leaves_nothing(tmp_path: Path) -> None:
    teacher = diagnoser()

    def killed(phase: str, done: int, total: int, **figures: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_teacher(teacher, batch_for(teacher, samples=4), tmp_path / "t", Distillation(), progress=killed)
    assert not list(tmp_path.iterdir())


def test_outputs_kept_for_other_settings_are_refused(tmp_path: Path) -> None:
    teacher = diagnoser()
    cache = cache_teacher(teacher, batch_for(teacher, samples=4), tmp_path / "t", Distillation())
    with pytest.raises(ConfigError, match="are for 2, got 3"):
        cache.loss(Distillation(temperature=3.0))
    with pytest.raises(ConfigError, match="holds no hidden states"):
        cache.loss(Distillation(hidden=1.0))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_comes_closer_to_its_teacher(tmp_path: Path, method: str) -> None:
    teacher = llama_like()
    student = copy.deepcopy(teacher)
    prune(student, PruningPlan.from_keep("layer", [[0, 2]]))
    data = batch_for(teacher, samples=16, tokens=8)
    settings = Distillation(weight=1.0, hidden=0.1)
    cache = cache_teacher(teacher, data, tmp_path / "t", settings, keep_layers=[0, 2])
    recovery = Recovery(steps=40, batch_size=8, rank=4, method=method, distillation=settings)  # type: ignore[arg-type]

    def apart() -> float:
        with torch.no_grad():
            return cache.loss(settings)(student, numbered(data)).mean().item()

    before = apart()
    twin = copy.deepcopy(student)
    first, second = (
        recover(model, data, recovery, steps=40, seed=0, teacher=cache) for model in (student, twin)
    )
    assert first.losses == second.losses
    assert apart() < 0.8 * before
    assert NUMBER not in data
    with pytest.raises(ConfigError, match="needs a teacher's cached outputs"):
        recover(student, data, recovery, steps=1, seed=0)


def test_labels_count_beside_the_teacher(tmp_path: Path) -> None:
    teacher, student = diagnoser(), perturbed(diagnoser(), seed=2)
    data = batch_for(teacher, samples=6)
    settings = Distillation(weight=0.25, temperature=4.0)
    cache = cache_teacher(teacher, data, tmp_path / "t", settings)
    with torch.no_grad():
        inputs = {name: t for name, t in data.items() if name != "labels"}
        mine, theirs = student(**inputs).logits, teacher(**inputs).logits
        found = cache.loss(settings)(student, numbered(data))
    hard = cross_entropy(mine, data["labels"], reduction="none")
    soft = kl_div((mine / 4).log_softmax(-1), (theirs / 4).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(found, 0.75 * hard + 0.25 * 16 * soft, rtol=1e-4, atol=1e-6)
