"""Keys change when, and only when, what a step depends on changes; damage of every kind is found."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_ops.errors import CheckpointError
from workflows.artifacts import (
    MANIFEST,
    Inputs,
    dense_inputs,
    final_inputs,
    read_manifest,
    seal,
    stage_inputs,
    verified,
)
from workflows.config import JobConfig, override, validate
from workflows.origin import Origin, key_of

DOCUMENT = {
    "threads": 1,
    "device": "auto",
    "data": {"name": "simulated", "length": 256, "options": {"seconds": 1.0}},
    "model": {"config": {"model_type": "gpt2", "n_embd": 16}},
    "schedule": {
        "stages": [
            {"granularity": "layer", "ratio": 0.4},
            {"granularity": "head", "ratio": 0.4},
            {"granularity": "channel", "target": 4.0, "share": 6.0},
        ],
        "recovery": {"steps": 20},
    },
}
ORIGIN = Origin(data="d", weights="w", tokenizer="t", versions={"torch": "1", "cascade-ops": "1"})
NEVER = 9
CHANGES = {
    **dict.fromkeys(
        (
            "seed=5", "threads=2", "device=cpu", "task=lm", "data.name=cwru", "data.split=time", "data.length=128",
            "data.stride=64", "data.rate_hz=6000", "data.classes=[N]", "data.calibration=8", "data.augment.noise=0.7",
            "data.augment.speed=0.4", "data.options.seconds=2.0", "data.sequences=3", "model.front_end=text",
            "model.patch=16", "model.filters=3", "model.taps=3", "model.dropout=0.5", "model.config.n_embd=32",
            "train.steps=7", "train.batch_size=3", "train.learning_rate=0.5",
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "schedule.recovery.steps=40", "schedule.recovery.batch_size=3", "schedule.recovery.method=full",
            "schedule.recovery.rank=3", "schedule.recovery.alpha=3", "schedule.recovery.learning_rate=0.5",
            "schedule.recovery.unfreeze=[]", "schedule.recovery.compensation=true", "schedule.recovery.patience=3",
            "schedule.recovery.distillation={}", "schedule.rescore=false", "schedule.stages.0.ratio=0.5",
            "schedule.stages.0.criterion=wanda", "schedule.stages.0.allocation=global",
            "recovering={workers: 1, zero: {dtype: bfloat16}}",
        ),
        1,
    ),
    "schedule.stages.1.granularity=kv_group": 2,
    "schedule.stages.1.ratio=0.5": 2,
    "schedule.stages.2.share=6.5": NEVER,  # gives the same steps
    "schedule.stages.2.target=5": 3,
    "schedule.stages.2.criterion=wanda": 3,
    **dict.fromkeys(
        (
            "scoring.workers=2", "out=elsewhere", "store=elsewhere", "data.path=elsewhere", "data.train=a.txt",
            "data.test=b.txt", "model.tokenizer=elsewhere", "recovering.threads=4",
            "recovering={workers: 2, zero: {stage: 3, offload: true}}", "tracking=[tensorboard]",
        ),
        NEVER,
    ),
}  # fmt: skip
"""Each change, and the first step (0: dense) that it concerns."""


def chain(config: JobConfig, origin: Origin = ORIGIN) -> list[str]:
    """The key of every step, as if a step's content followed from its key alone."""
    schedule = config.schedule.build()
    keys = [key_of(dense_inputs(config, origin))]
    for index in range(len(schedule.stages)):
        inputs = stage_inputs(config, schedule, index, origin, dense=keys[0], previous=keys[-1])
        keys.append(key_of(inputs))
    return [*keys, key_of(final_inputs(keys[-1], origin))]


def configured(*settings: str) -> JobConfig:
    return validate(override(yaml.safe_load(yaml.safe_dump(DOCUMENT)), list(settings)))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_concerns_its_step_and_all_after_it(change: str) -> None:
    before, after = chain(configured()), chain(configured(change))
    first = CHANGES[change]
    assert after[:first] == before[:first]
    assert all(new != old for new, old in zip(after[first:], before[first:], strict=True))


@settings(deadline=None)
@given(st.lists(st.sampled_from(sorted(CHANGES)), unique_by=lambda change: change.split("=")[0], max_size=5))
def test_many_changes_concern_the_first_of_their_steps(changes: list[str]) -> None:
    before, after = chain(configured()), chain(configured(*changes))
    first = min((CHANGES[change] for change in changes), default=NEVER)
    assert after[:first] == before[:first]
    assert all(new != old for new, old in zip(after[first:], before[first:], strict=True))


def test_one_shot_stages_depend_on_all_criteria() -> None:
    before = chain(configured("schedule.rescore=false"))
    after = chain(configured("schedule.rescore=false", "schedule.stages.2.criterion=wanda"))
    assert [new == old for new, old in zip(after, before, strict=True)] == [True, False, False, False, False]


@pytest.mark.parametrize("name", ["data", "weights", "tokenizer", "versions"])
def test_what_a_run_starts_from_concerns_every_step(name: str) -> None:
    other = replace(ORIGIN, **{name: {"torch": "2"} if name == "versions" else "x"})
    assert not set(chain(configured())) & set(chain(configured(), other))


def test_every_part_of_the_configuration_has_been_thought_of() -> None:
    """A new part must be added to the inputs of the steps that depend on it, and here."""
    known = {
        "model",
        "schedule",
        "data",
        "train",
        "scoring",
        "recovering",
        "task",
        "seed",
        "threads",
        "device",
        "out",
    }
    assert {field.name for field in fields(JobConfig)} == known | {"store", "tracking"}


INPUTS: Inputs = {"kind": "dense", "seed": 0}


@pytest.fixture
def step(tmp_path: Path) -> Path:
    folder = tmp_path / "step"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "result.json").write_text('{"seconds": 1}')
    seal(folder, INPUTS)
    return folder


def test_whole_step(step: Path) -> None:
    manifest = verified(step, INPUTS)
    assert sorted(manifest.files) == ["model/config.json", "model/model.safetensors", "result.json"]
    document = json.loads((step / MANIFEST).read_text())
    assert (document["schema"], document["inputs"]) == ("cascade.artifact/1", INPUTS)


def test_content_is_that_of_the_model_alone(step: Path) -> None:
    before = read_manifest(step).content
    (step / "result.json").write_text('{"seconds": 2}')
    assert seal(step, INPUTS).content == before
    (step / "model" / "config.json").write_text("{ }")
    assert seal(step, INPUTS).content != before


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewritten(step: Path, **changes: object) -> None:
    document = json.loads((step / MANIFEST).read_text())
    (step / MANIFEST).write_text(json.dumps({**document, **changes}))


DAMAGE = {
    "flipped bit": (lambda s: flipped(s / "model/model.safetensors"), r"^model/model.safetensors is .* \(checksum\)"),
    "truncated": (lambda s: (s / "result.json").write_text("{"), r"^result.json is damaged \(1 bytes, expected 14\)"),
    "empty": (lambda s: (s / "model/model.safetensors").write_bytes(b""), "is damaged"),
    "missing": (lambda s: (s / "model/config.json").unlink(), "^model/config.json is missing"),
    "folder missing": (lambda s: shutil.rmtree(s / "model"), "^model/config.json is missing"),
    "no manifest": (lambda s: (s / MANIFEST).unlink(), "^manifest.json is missing"),
    "not JSON": (lambda s: (s / MANIFEST).write_text('{"key": '), "^manifest.json is damaged"),
    "not text": (lambda s: (s / MANIFEST).write_bytes(b"\xff\xfe\x00"), "^manifest.json is damaged"),
    "other inputs": (lambda s: rewritten(s, inputs={"seed": 1}), "^manifest.json is damaged"),
    "other schema": (lambda s: rewritten(s, schema="cascade.artifact/9"), "^manifest.json is damaged"),
    "outside": (lambda s: rewritten(s, files={"../x": {"sha256": "", "bytes": 0}}), "^manifest.json is damaged"),
    "stranger": (lambda s: (s / "model/extra.json").write_text("{}"), "^model/extra.json does not belong there"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage(kind: str, step: Path) -> None:
    damage, message = DAMAGE[kind]
    damage(step)
    with pytest.raises(CheckpointError, match=message):
        verified(step, INPUTS)


def test_another_key_names_what_differs(step: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was made from something else \(seed\)"):
        verified(step, {**INPUTS, "seed": 1})
