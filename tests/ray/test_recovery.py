"""Recovery fits by DeepSpeed on Ray Train: the curve and the weights of one process, whoever dies."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import PreTrainedModel

from cascade_ops.checkpoint import load_pruned
from cascade_ops.errors import CascadeError, ConfigError
from cascade_ops.progress import Progress, silent
from cascade_ops.recovery import recover
from cascade_ops.results import RecoveryResult
from cascade_ops.schedule import Recovery
from cascade_ops.zero import Zero
from tests.cli.conftest import TINY
from tests.factories import batch_for, llama_like
from tests.ray.conftest import living
from workflows import config, job
from workflows.config import RecoveringConfig
from workflows.recovery.trainer import cluster_recoverer
from workflows.scoring.sizing import ClusterTooSmallError

RECOVERY = Recovery(steps=8, batch_size=8, rank=3, alpha=6.0, patience=3, check_every=2)
CLOSE = {"rtol": 0.0, "atol": 2e-6}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    return batch_for(llama_like(), samples=32, tokens=12)


def mended(
    data: dict[str, torch.Tensor],
    folder: Path | None,
    recovery: Recovery = RECOVERY,
    progress: Progress = silent,
    *,
    poisoned: bool = False,
    **how: Any,
) -> tuple[PreTrainedModel, RecoveryResult]:
    """A model mended by workers, or in this process if no folder is given."""
    model = copy.deepcopy(llama_like())
    if poisoned:
        model.model.norm.weight.data[0] = float("nan")
    recoverer = (
        recover if folder is None else cluster_recoverer(RecoveringConfig(**how), folder, device="cpu")
    )
    result = recoverer(
        model,
        data,
        recovery,
        steps=recovery.steps,
        seed=3,
        validation={name: tensor[:13] for name, tensor in data.items()},
        teacher=None,
        augment=None,
        progress=progress,
    )
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    return model, result


def check_alike(
    one: tuple[PreTrainedModel, RecoveryResult], other: tuple[PreTrainedModel, RecoveryResult]
) -> None:
    torch.testing.assert_close(one[1].losses, other[1].losses, **CLOSE)
    torch.testing.assert_close(one[1].validation, other[1].validation, **CLOSE)
    assert one[1].trainable_params == other[1].trainable_params
    torch.testing.assert_close(one[0].state_dict(), other[0].state_dict(), **CLOSE)


@pytest.mark.parametrize(
    ("workers", "zero"),
    [
        (2, Zero(stage=2)),
        (2, Zero(stage=3, offload=True)),
        (1, Zero(stage=1, accumulation=2, checkpointing=True)),
    ],
    ids=["zero-2", "zero-3", "accumulated"],
)
def test_workers_give_the_curve_and_the_weights_of_one_process(
    data: dict[str, torch.Tensor], tmp_path: Path, workers: int, zero: Zero
) -> None:
    here = mended(data, None)
    there = mended(data, tmp_path, workers=workers, zero=zero)
    check_alike(there, here)
    assert there[1].losses[-1] < there[1].losses[0]
    assert there[1].workers == workers
    assert there[1].peak_bytes > 2**27  # torch alone
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_fit_whose_worker_is_killed_ends_with_the_same_weights(
    data: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    recovery = Recovery(steps=150, batch_size=8, method="full", learning_rate=1e-4)
    killed: list[int] = []

    def kill(phase: str, done: int, total: int, **figures: float) -> None:
        if not killed and done < total:
            victims = [actor["Pid"] for actor in living() if "Worker" in actor["ActorClassName"]]
            killed.extend(victims)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)

    there = mended(data, tmp_path, recovery, kill, workers=1)
    assert killed
    check_alike(there, mended(data, None, recovery))


def test_what_a_worker_finds_wrong_is_told_as_here(data: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="recover: the loss became nan at step 1 of 8"):
        mended(data, tmp_path, workers=1, poisoned=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="8 samples cannot be divided by 3 workers"):
        mended(data, tmp_path, workers=3)
    with pytest.raises(ClusterTooSmallError, match="4 need 4 CPUs, the cluster has 3"):
        mended(data, tmp_path, workers=4)


def test_a_cascade_that_mends_on_workers_ends_as_one_that_does_not(tmp_path: Path) -> None:
    stage = {"granularity": "channel", "ratio": 0.5}
    document = copy.deepcopy(TINY) | {
        "schedule": {"stages": [stage], "recovery": {"steps": 6, "batch_size": 16}}
    }
    document["model"]["config"] |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    models = []
    for name, changes in (("here", {}), ("there", {"recovering": {"workers": 2}})):
        run = job.start(config.resolve({**document, **changes}), tmp_path / name)
        models.append(load_pruned(run.model).state_dict())
    torch.testing.assert_close(*models, rtol=0, atol=1e-5)
    assert not (tmp_path / "there" / ".scratch").exists() or not list(
        (tmp_path / "there" / ".scratch").iterdir()
    )
