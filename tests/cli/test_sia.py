"""``cascade sia``: the config alone, the measured check, its page, and each mistake told in one line."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from cascade_ops.checkpoint import save_pruned
from tests.factories import gpt2, llama_like
from workflows.sia.record import read_record

HERE = ("--threads", 1, "--samples", 24)


def config_in(folder: Path, **fields: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def test_a_config_alone_is_enough(tmp_path: Path, cascade) -> None:
    folder = config_in(tmp_path / "llama-8b", **LLAMA3)
    cascade("sia", folder, "--structural")  # imports
    began = time.process_time()
    result = cascade("sia", folder, "--structural")
    took = time.process_time() - began
    assert result.exit_code == 0, result.output
    assert "8,030,261,248 parameters" in result.stdout
    assert "head: violated (κ=4): four query heads share each K/V. Use kv_group: it holds." in result.stdout
    assert "π=2" in result.stdout
    assert took < 1
    document = json.loads(cascade("sia", folder, "--structural", "--json").stdout)
    assert document["schema"] == "cascade.sia/1"
    assert {one["granularity"]: one["holds"] for one in document["structural"]} == {
        "layer": True,
        "head": False,
        "kv_group": True,
        "channel": False,
    }
    assert document["check"] is None
    by_file = json.loads(cascade("sia", folder / "config.json", "--structural", "--json").stdout)
    assert by_file["structural"] == document["structural"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]


def test_an_unknown_architecture_is_told_what_is_missing(tmp_path: Path, cascade) -> None:
    folder = config_in(tmp_path / "mamba", model_type="mamba", architectures=["MambaForCausalLM"])
    result = cascade("sia", folder, "--structural")
    assert result.exit_code == 2
    assert "mamba" in result.stderr
    assert "llama" in result.stderr, "which are known"
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def checked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from workflows.cli import app

    out = tmp_path_factory.mktemp("sia") / "check"
    result = CliRunner().invoke(app, ["sia", str(finished), *map(str, HERE), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_a_run_is_checked_on_its_own_data(checked: Path) -> None:
    assert sorted(path.name for path in checked.iterdir()) == ["report.html", "sia.json"]
    record = read_record(checked)
    assert record.check is not None
    assert record.data["split"] == "load:3"
    assert record.check.samples == 24
    assert {one.kind.value for one in record.check.interactions} <= {"layer", "head", "channel"}
    assert record.check.depth is not None
    page = (checked / "report.html").read_text()
    assert page.count("<svg") >= 3
    assert not re.search(r"https?://(?!www\.w3\.org)", page), "the page loads nothing from elsewhere"
    for verdict in record.check.verdicts:
        assert verdict.words.split(".")[0] in page


def test_a_report_can_be_drawn_again(checked: Path, cascade) -> None:
    page = checked / "report.html"
    before = page.read_text()
    page.unlink()
    result = cascade("report", checked)
    assert result.exit_code == 0, result.output
    assert page.read_text() == before


def test_without_data_a_language_model_gets_its_structure(tmp_path: Path, cascade) -> None:
    save_pruned(llama_like(), tmp_path / "llama")
    result = cascade("sia", tmp_path / "llama")
    assert result.exit_code == 0, result.output
    assert "κ=3" in result.stdout
    assert "--data" in result.stderr


def test_the_cost_is_told_before_it_is_spent(finished: Path, tmp_path: Path, cascade) -> None:
    result = cascade("sia", finished, *HERE, "--budget", 120, "--out", tmp_path / "check")
    assert result.exit_code == 0, result.output
    told = re.search(
        r"at most 120 ablations of 2 samples; with scores, about ([\d.]+) forward", result.stderr
    )
    assert told
    check = read_record(tmp_path / "check").check
    assert check is not None
    assert check.ablations <= 120
    assert check.per_ablation == 2


def test_random_tokens_and_json(tmp_path: Path, cascade) -> None:
    save_pruned(gpt2(), tmp_path / "gpt2")
    out = tmp_path / "check"
    options = ("--data", "random", "--length", 12, *HERE, "--json", "--out", out)
    result = cascade("sia", tmp_path / "gpt2", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((out / "sia.json").read_text())
    assert document["check"]["depth"]["probe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", 3), r"budget: 3 ablations do not suffice for one round, which takes \d+"),
        (("--budget", 0), "--budget: must be ≥ 1"),
        (("--criterion", "tailor"), "taylor"),
        (("--tau", 0), "--tau: must be > 0"),
        (("--device", "tpu"), "--device: must be auto, cpu or cuda"),
        (("--workers", -1), "--workers: must be ≥ 0"),
        (("--split", "load:9"), "load"),
        (("--samples", 0), "--samples: must be ≥ 1"),
        (("--samples", 7), "expected at least 8 calibration samples, found 7"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    arguments: tuple[object, ...], message: str, finished: Path, tmp_path: Path, cascade
) -> None:
    out = tmp_path / "check"
    result = cascade("sia", finished, "--threads", 1, *arguments, "--out", out)
    assert result.exit_code in (1, 2), result.output
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_damaged_results_are_told(checked: Path, tmp_path: Path, cascade) -> None:
    (tmp_path / "sia.json").write_text((checked / "sia.json").read_text()[:-40])
    result = cascade("report", tmp_path)
    assert result.exit_code == 1
    assert "Run cascade sia again" in result.stderr
    assert cascade("sia", "nowhere/at-all", "--structural").exit_code == 2


def test_a_study_of_unknown_data_leaves_nothing(tmp_path: Path, cascade) -> None:
    result = cascade("study", "sia", "--data", "nosuch", "--out", tmp_path / "study")
    assert result.exit_code == 2
    assert "unknown dataset 'nosuch'" in result.stderr
    assert not list(tmp_path.iterdir())
