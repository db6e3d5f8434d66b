from __future__ import annotations

from typing import Any

import pytest

from cascade_ops.errors import ConfigError
from workflows import config

BASE: dict[str, Any] = {
    "model": {"config": {"model_type": "gpt2"}},
    "schedule": {"stages": [{"granularity": "layer", "ratio": 0.5}, {"granularity": "channel", "target": 4}]},
}


def refused(*settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.resolve(config.override(BASE, list(settings)))
    return str(caught.value)


def test_the_packaged_default_is_valid_and_meets_the_target() -> None:
    resolved = config.resolve(config.default_document())
    assert resolved.data.name == "auto"
    assert resolved.schedule.stages is not None
    assert [stage.granularity for stage in resolved.schedule.stages] == ["layer", "head", "channel"]
    assert resolved.schedule.stages[-1].target == 13.8


def test_a_dumped_configuration_reads_back_the_same(tmp_path) -> None:
    resolved = config.resolve(config.default_document())
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(resolved))
    again = config.resolve(config.read_document(path))
    assert again == resolved
    assert config.differences(resolved, again) == []


@pytest.mark.parametrize("target", ["13.8x", "13.8×", "13.8", " 13.8 x", 13.8])
def test_ways_to_write_a_target(target: object) -> None:
    assert config.validate({**BASE, "schedule": {"target": target}}).schedule.target == 13.8


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.stages.0.ratio=1.5", "schedule.stages.0.ratio: must be in (0, 1), got 1.5"),
        ("schedule.stages.0.ratio=0", "schedule.stages.0.ratio: must be in (0, 1), got 0"),
        ("schedule.stages.1.target=1", "schedule.stages.1.target: must be a compression > 1, got 1"),
        ("schedule.stages.1.ratio=0.2", "schedule.stages.1.ratio, target: give exactly one"),
        ("schedule.stages.9.ratio=0.2", "schedule.stages.9: expected an index from 0 to 1, got 9"),
        ("schedule.stages.0.ratoi=0.2", "schedule.stages.0.ratoi: unknown key. Did you mean 'ratio'?"),
        ("schedule.recovery.rnak=4", "schedule.recovery.rnak: unknown key. Did you mean 'rank'?"),
        ("schedule.recovery.rank=0", "schedule.recovery.rank: must be ≥ 1, got 0"),
        ("schedule.recovery.method=lorra", "Did you mean 'lora'?"),
        ("schedule.target=4", "schedule.target, stages: give exactly one, got both"),
        ("schedule.stages=[]", "schedule.stages: at least one stage is needed"),
        ("train.steps=-1", "train.steps: must be ≥ 0, got -1"),
        ("data.length=0", "data.length: must be > 0, got 0"),
        ("model.path=x", "model.config, path: give exactly one, got both"),
        ("seed=-1", "seed: must be ≥ 0, got -1"),
        ("model=3", "model: must be a mapping"),
        ("seed.x=1", "seed: must be a valid integer"),
    ],
)
def test_errors_say_where(setting: str, message: str) -> None:
    assert message in refused(setting)


def test_a_target_cannot_fall_from_one_stage_to_the_next() -> None:
    stages = "[{granularity: head, target: 5}, {granularity: channel, target: 4}]"
    assert "stages.1.target: must exceed the stage before it" in refused(f"schedule.stages={stages}")


def test_an_override_reaches_the_stages_behind_a_target() -> None:
    document = {**BASE, "schedule": {"target": 8}}
    resolved = config.resolve(config.override(document, ["schedule.stages.1.criterion=wanda"]))
    assert resolved.schedule.stages is not None
    assert [stage.criterion for stage in resolved.schedule.stages] == ["taylor", "wanda", "taylor"]
    assert document["schedule"] == {"target": 8}


def test_override_values_are_yaml() -> None:
    document = config.override({}, ["a.b=null", "c=[1, x]", "d=1e-3", "e=true", "f="])
    assert document == {"a": {"b": None}, "c": [1, "x"], "d": "1e-3", "e": True, "f": None}
    assert config.validate(config.override(BASE, ["train.learning_rate=1e-3"])).train.learning_rate == 1e-3


def test_differences_name_the_keys() -> None:
    one = config.resolve(BASE)
    other = config.resolve(config.override(BASE, ["seed=4", "schedule.stages.0.ratio=0.25", "out=elsewhere"]))
    assert config.differences(one, other) == ["schedule.stages.0.ratio: 0.5 → 0.25", "seed: 0 → 4"]
