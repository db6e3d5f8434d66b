"""The whole job on a tiny model, and every command on what it leaves."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import yaml

from tests.jobs import WORDS, save_word_tokenizer


def test_compress_says_what_it_did(tiny: Path, tmp_path: Path, cascade) -> None:
    out = tmp_path / "run"
    result = cascade("compress", tiny, "--out", out, "--target", "3×")
    assert result.exit_code == 0, result.output
    assert "simulated signals" in result.stderr
    assert f"cascade compress --resume {out}" in result.stderr
    assert "3.0×" in result.stdout
    assert str(out / "report.html") in result.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml", "model", "provenance.json", "report.html", "report.json", "status.json", "steps",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "steps").iterdir()) == [
        "00-dense",
        "01-layer",
        "02-head",
        "03-channel",
    ]


def test_json_is_one_document_and_reaches_the_target(tiny: Path, tmp_path: Path, cascade) -> None:
    out = tmp_path / "run"
    result = cascade("compress", tiny, "--out", out, "--json", "--quiet", "--set", "seed=3")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["schema"] == "cascade.report/1"
    assert document["task"] == "diagnosis"
    assert document["seeds"] == [3]
    assert document["compression"]["backbone"] >= 4
    assert [stage["granularity"] for stage in document["stages"]] == ["layer", "head", "channel"]
    assert Path(document["artifacts"]["model"]).is_dir()
    again = cascade("report", out, "--json")
    assert json.loads(again.stdout) == document


def test_run_describes_itself(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["threads"] == 1
    assert [stage["granularity"] for stage in config["schedule"]["stages"]] == ["layer", "head", "channel"]
    origin = json.loads((finished / "provenance.json").read_text())
    assert origin["versions"]["torch"]
    assert len(origin["data_fingerprint"]) == 64


def test_same_seed_same_weights(tiny: Path, finished: Path, tmp_path: Path, cascade) -> None:
    assert cascade("compress", tiny, "--out", tmp_path / "again").exit_code == 0
    first, second = (path / "model" / "model.safetensors" for path in (finished, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_one_shot_schedule_in_another_order(tiny: Path, tmp_path: Path, cascade) -> None:
    stages = (
        "[{granularity: channel, ratio: 0.5, criterion: wanda, share: 0}, {granularity: layer, ratio: 0.34}]"
    )
    settings = ["schedule.rescore=false", "schedule.target=null", f"schedule.stages={stages}"]
    flags = [part for setting in settings for part in ("--set", setting)]
    result = cascade("compress", tiny, "--out", tmp_path / "run", "--json", *flags)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["stages"]
    assert [(s["granularity"], s["recovery_steps"]) for s in found] == [("channel", 0), ("layer", 20)]


def test_inspect(finished: Path, cascade) -> None:
    document = json.loads(cascade("inspect", finished, "--json").stdout)
    params = document["params"]
    assert params["backbone"] == params["attention"] + params["mlp"] + params["norms_and_biases"]
    assert params["total"] == params["backbone"] + params["other"]
    assert {verdict["granularity"] for verdict in document["sia"]} == {"layer", "head", "kv_group", "channel"}
    assert "gpt2" in cascade("inspect", finished / "steps" / "00-dense" / "model").stdout


def test_inspect_from_a_config_alone(tmp_path: Path, cascade) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    document = json.loads(cascade("inspect", tmp_path, "--json").stdout)
    verdicts = {verdict["granularity"]: verdict for verdict in document["sia"]}
    assert not verdicts["head"]["holds"]
    assert verdicts["head"]["kappa"] == 2
    assert "kv_group" in verdicts["head"]["reason"]
    # For a person: layers of one shape share a row.
    shown = cascade("inspect", tmp_path).stdout.splitlines()
    assert [line.split()[:5] for line in shown if line.startswith("0")] == [["0–1", "4", "2", "8", "48"]]


def test_eval_repeats_the_reports_figures(finished: Path, cascade) -> None:
    report = json.loads(cascade("report", finished, "--json").stdout)
    for path, which in ((finished, "final"), (finished / "steps" / "00-dense" / "model", "dense")):
        result = cascade("eval", path, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["evaluation"]["metric"]["value"] == report["metric"][which]


def test_eval_of_a_model_that_left_its_run(finished: Path, tmp_path: Path, cascade) -> None:
    import shutil

    shutil.copytree(finished / "model", tmp_path / "elsewhere")
    result = cascade("eval", tmp_path / "elsewhere", "--data", "simulated", "--split", "time")
    assert result.exit_code == 2
    assert "the model knows the classes N, IR014, OR014" in result.stderr


def test_eval_on_data_with_other_classes_is_refused(finished: Path, cascade) -> None:
    result = cascade("eval", finished, "--data", "simulated")
    assert result.exit_code == 2
    assert "the model knows the classes" in result.stderr


def test_report_is_rendered_anew(finished: Path, tmp_path: Path, cascade) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    result = cascade("report", copy)
    assert result.exit_code == 0, result.output
    assert (copy / "report.html").read_bytes() == (finished / "report.html").read_bytes()


def test_ls(finished: Path, cascade) -> None:
    runs = json.loads(cascade("ls", "--root", finished.parent, "--json").stdout)["rows"]
    assert [(row["run"], row["state"]) for row in runs] == [(str(finished), "complete")]
    for what in ("models", "criteria", "families", "datasets"):
        result = cascade("ls", what, "--root", finished.parent, "--json")
        assert json.loads(result.stdout)["rows"], what


def test_ls_of_something_else(cascade) -> None:
    result = cascade("ls", "criterias")
    assert result.exit_code == 2
    assert "Did you mean 'criteria'?" in result.stderr


def test_full_disk(tiny: Path, tmp_path: Path, cascade) -> None:
    """A limit on file size stands in for a full disk: the description fits, the weights do not."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        result = cascade("compress", tiny, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert f"cascade compress --resume {out}" in result.stderr
    assert list((out / "steps").iterdir()) == []
    assert cascade("compress", tiny, "--out", out).exit_code == 0


def test_version(cascade) -> None:
    assert cascade("--version").stdout.startswith("cascade-ops 0.")


def test_a_saved_model_is_compressed_as_it_is(tiny: Path, finished: Path, tmp_path: Path, cascade) -> None:
    dense = finished / "steps" / "00-dense" / "model"
    arguments = ["--model", dense, "--set", "train.steps=0", "--json"]
    result = cascade("compress", tiny, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(cascade("report", finished, "--json").stdout)
    assert json.loads(result.stdout)["metric"]["dense"] == report["metric"]["dense"]
    first, second = (run / "model" / "model.safetensors" for run in (finished, tmp_path / "run"))
    assert first.read_bytes() == second.read_bytes()


def test_text_front_end(tiny: Path, text_task: Path, tmp_path: Path, cascade) -> None:
    tokenizer = yaml.safe_load(text_task.read_text())["model"]["tokenizer"]
    settings = ["model.front_end=text", f"model.tokenizer={tokenizer}", "model.config.n_positions=128",
                "model.config.vocab_size=31", "train.steps=3", "schedule.recovery.steps=3"]  # fmt: skip
    flags = [part for setting in settings for part in ("--set", setting)]
    result = cascade("compress", tiny, "--out", tmp_path / "run", "--json", *flags)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["compression"]["backbone"] >= 4


@pytest.fixture
def text_task(tmp_path: Path) -> Path:
    """A tiny language-modelling job with a tokenizer of its own."""
    save_word_tokenizer(tmp_path / "tok")
    for name, count in (("train", 2000), ("test", 400)):
        text = " ".join(WORDS[(i * i) % 30] for i in range(count))
        (tmp_path / f"{name}.txt").write_text(text)
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
    document = {
        "task": "lm",
        "threads": 1,
        "data": {
            "name": "text",
            "train": str(tmp_path / "train.txt"),
            "test": str(tmp_path / "test.txt"),
            "length": 16,
            "calibration": 16,
        },
        "model": {"config": config, "tokenizer": str(tmp_path / "tok")},
        "train": {"steps": 20, "batch_size": 8},
        "schedule": {
            "stages": [{"granularity": "kv_group", "ratio": 0.5}, {"granularity": "channel", "target": 2.5}],
            "recovery": {"steps": 10, "batch_size": 8},
        },
    }
    path = tmp_path / "lm.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_language_model(text_task: Path, tmp_path: Path, cascade) -> None:
    result = cascade("compress", text_task, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["metric"]["name"] == "perplexity"
    assert document["compression"]["backbone"] >= 2.5
