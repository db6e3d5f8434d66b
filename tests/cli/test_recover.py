"""``cascade recover``, and recoveries of every kind inside ``cascade compress``: what they leave, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.errors import UsageError
from tests.cli.conftest import TINY
from tests.factories import assert_same_weights, gpt2
from workflows import config, job
from workflows.recovery.job import RECORD

FEW = ("--steps", 6, "--threads", 1, "--set", "recovery.batch_size=16")


def test_a_runs_model_is_mended_on_the_runs_own_data(finished: Path, tmp_path: Path, cascade) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    result = cascade("recover", finished, *FEW, "--out", first, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((first / RECORD).read_text())
    assert document["schema"] == "cascade.recovery/1"
    assert (document["recovery"]["steps"], len(document["recovery"]["losses"])) == (6, 6)
    assert document["data"]["name"] == "simulated"
    assert {path.name for path in first.iterdir()} == {"model", RECORD}
    assert cascade("recover", finished, *FEW, "--out", second, "--quiet").exit_code == 0
    assert_same_weights(load_pruned(first / "model"), load_pruned(second / "model"))


def test_a_model_learns_from_a_teacher(finished: Path, tmp_path: Path, cascade) -> None:
    dense, out = finished / "steps" / "00-dense" / "model", tmp_path / "out"
    result = cascade("recover", finished, *FEW, "--teacher", dense, "--out", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"model", RECORD}
    assert json.loads((out / RECORD).read_text())["settings"]["recovery"]["distillation"]["weight"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "--steps: must be ≥ 1"),
        (("--set", "recovery.rank=17"), "recovery.rank: 17 exceeds the smaller side"),
        (("--set", "recovery.rnk=4"), "recovery.rnk"),
        (("--set", "recovery.compensation=true"), "happens at a cut"),
        (("--set", "recovery.distillation={}"), "--teacher and distillation belong together"),
        (("--dtype", "bfloat16"), "give --workers"),
        (("--workers", 1, "--zero", 4), "recovering.zero.stage"),
        (("--workers", 3), "64 samples cannot be divided by 3 workers"),
        (("--workers", 1, "--deepspeed", "none.json"), "none.json: expected DeepSpeed settings"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    finished: Path, tmp_path: Path, cascade, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    from workflows.recovery import job as recovery

    monkeypatch.setattr(recovery, "load_pruned", lambda path: pytest.fail("weights were read"))
    out = tmp_path / "out"
    result = cascade("recover", finished, "--steps", 5, *arguments, "--out", out)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_settings_that_contradict_are_refused(finished: Path, tmp_path: Path, cascade) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 7}))
    result = cascade("recover", finished, "--workers", 1, "--deepspeed", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{path}: train_batch_size: 7 contradicts 64" in result.stderr


def test_a_text_is_learnt_and_measured_on_another(tmp_path: Path, cascade) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[UNK]", *"abcdefghij"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    save_pruned(gpt2(), folder)
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(folder)
    (tmp_path / "train.txt").write_text("a b c d e f g h i j " * 80)
    (tmp_path / "test.txt").write_text("a b c d e f g h i j " * 8)
    train = ("--data", tmp_path / "train.txt", "--length", 16)
    result = cascade("recover", folder, *FEW, *train, "--out", tmp_path / "out")
    assert (result.exit_code, "--test: is required" in result.stderr) == (2, True)
    both = (*train, "--test", tmp_path / "test.txt")
    # The text repeats itself, so its end is no validation set.
    result = cascade(
        "recover", folder, *FEW, *both, "--set", "recovery.patience=1", "--out", tmp_path / "out"
    )
    assert (result.exit_code, "are training samples too" in result.stderr) == (1, True)
    result = cascade("recover", folder, *FEW, *both, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["after"]["metric"]["value"] < document["before"]["metric"]["value"]


EVERYTHING = {
    "compensation": True,
    "distillation": {"hidden": 0.1},
    "patience": 1,
    "check_every": 2,
    "method": "full",
}


def test_a_cascade_with_everything_resumes_to_the_same_weights(
    tmp_path: Path, cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(yaml.safe_dump(TINY))
    document["schedule"]["recovery"] |= EVERYTHING
    document["tracking"] = ["tensorboard"]
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(document))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cascade("compress", path, "--out", whole, "--quiet").exit_code == 0
    shutil.copytree(whole, broken)
    for name in ("report.json", "report.html"):
        (broken / name).unlink()
    shutil.rmtree(broken / "model")
    for step in sorted((broken / "steps").iterdir())[2:]:
        shutil.rmtree(step)
    result = cascade("compress", "--resume", broken)
    assert result.exit_code == 0, result.output
    assert_same_weights(load_pruned(whole / "model"), load_pruned(broken / "model"))
    assert not (whole / "teachers").exists()
    assert not (whole / ".scratch").exists()
    assert list((whole / "tensorboard").iterdir())
    last = json.loads((whole / "steps" / "03-channel" / "result.json").read_text())["recovery"]
    assert last["validation"]
    assert len(last["losses"]) == last["validation"][-1][0] or len(last["losses"]) == last["steps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovering": {"workers": 3}}, "16 samples cannot be divided by 3 workers"),
        ({"tracking": ["tensorbord"]}, "Did you mean 'tensorboard'"),
        ({"recovering": {"zero": {"stage": 3}}}, "recovering.zero, address: concern workers"),
    ],
)
def test_what_a_fit_would_refuse_is_refused_before_the_run(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        job.start(config.resolve({**TINY, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
