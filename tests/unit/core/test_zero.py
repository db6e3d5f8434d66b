"""DeepSpeed's document: what follows from the job, what a user may add, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_ops.errors import ConfigError
from cascade_ops.training import TrainConfig
from cascade_ops.zero import OURS, Zero, deepspeed_document

FIT = TrainConfig(steps=10, batch_size=24, clip=0.5)


def written(path: Path, settings: Any) -> str:
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(path)


def test_samples_of_a_step_are_divided_by_workers_and_micro_batches() -> None:
    document = deepspeed_document(Zero(stage=3, accumulation=2, dtype="bfloat16"), FIT, workers=3)
    assert document["train_batch_size"] == 24
    assert document["train_micro_batch_size_per_gpu"] == 4
    assert document["gradient_accumulation_steps"] == 2
    assert (document["gradient_clipping"], document["bf16"]) == (0.5, {"enabled": True})
    assert document["zero_optimization"]["stage"] == 3
    with pytest.raises(ConfigError, match=r"24 samples cannot be divided by 5 workers × 2 .* multiple of 10"):
        deepspeed_document(Zero(accumulation=2), FIT, workers=5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_names_what_lies_in_the_hosts_memory(stage: Any) -> None:
    zero = deepspeed_document(Zero(stage=stage, offload=True), FIT, workers=1)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu"}
    assert ("offload_param" in zero) == (stage == 3)


def test_a_users_settings_are_merged_where_they_agree(tmp_path: Path) -> None:
    given = {
        "train_batch_size": "auto",
        "gradient_clipping": 0.5,
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000},
    }
    path = written(tmp_path / "ds.json", given)
    document = deepspeed_document(Zero(config=path), FIT, workers=1)
    assert document["train_batch_size"] == 24
    assert document["wall_clock_breakdown"] is True
    assert document["zero_optimization"]["overlap_comm"] is True
    assert document["zero_optimization"]["reduce_bucket_size"] == 1000
    assert document["zero_optimization"]["allgather_bucket_size"] == 2**22


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "expected DeepSpeed settings in JSON"),
        ([1], "expected a JSON object, found list"),
        ({"zero_optimisation": {}}, "zero_optimisation: no such DeepSpeed setting"),
        ({"train_batch_size": 32}, "train_batch_size: 32 contradicts 24"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage: 3 contradicts 2"),
        ({"zero_optimization": {"overlap_com": True}}, r"zero_optimization\.overlap_com: Extra inputs"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled: True contradicts False"),
        *(({key: {}}, f"{key}: is decided by") for key in OURS),
    ],
)
def test_a_users_settings_are_refused_with_where_and_why(tmp_path: Path, settings: Any, message: str) -> None:
    path = written(tmp_path / "ds.json", settings)
    with pytest.raises(ConfigError, match=message) as caught:
        deepspeed_document(Zero(config=path), FIT, workers=1)
    assert str(caught.value).startswith(path)


def test_settings_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"none\.json: expected DeepSpeed settings in JSON"):
        deepspeed_document(Zero(config="none.json"), FIT, workers=1)
    with pytest.raises(ConfigError, match="accumulation: must be ≥ 1"):
        Zero(accumulation=0)
    with pytest.raises(ConfigError, match="offload: stage 0 divides nothing"):
        Zero(stage=0, offload=True)
