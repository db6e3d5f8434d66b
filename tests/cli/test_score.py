"""``cascade score``: what it leaves, and each mistake told in one line with nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade_ops.batches import subset
from cascade_ops.checkpoint import load_pruned, save_pruned
from cascade_ops.criteria import CRITERIA
from cascade_ops.granularity import Granularity
from cascade_ops.scoring import score
from tests.factories import gpt2

HERE = ("--workers", 0, "--threads", 1)
RANDOM = ("--data", "random", "--length", 16, "--samples", 8)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of three layers in several files: do not write into it."""
    from huggingface_hub import save_torch_state_dict

    folder = tmp_path_factory.mktemp("model") / "gpt2"
    model = gpt2()
    save_pruned(model, folder)
    (folder / "model.safetensors").unlink()
    save_torch_state_dict(
        model.state_dict(), folder, max_shard_size=4000, shared_tensors_to_discard=["lm_head.weight"]
    )
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


@pytest.fixture
def broken(language_model: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(language_model, tmp_path / "broken"))


@pytest.mark.parametrize("shards", [1, 3])
def test_the_table_holds_what_score_computes(
    shards: int, language_model: Path, tmp_path: Path, cascade
) -> None:
    out = tmp_path / "run"
    result = cascade(
        "score", language_model, *RANDOM, *HERE, "--shards", shards, "--seed", 3, "--out", out, "--json"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "cascade.score/1"
    assert len(document["shards"]) == shards
    assert (document["samples"], document["tokens"], document["length"]) == (8, 128, 16)
    ids = torch.randint(0, 40, (8, 16), generator=torch.Generator().manual_seed(3))
    expected = score(load_pruned(language_model), [{"input_ids": ids}], tuple(CRITERIA), seed=3)
    table = pq.read_table(out / "scores.parquet").to_pylist()
    assert {(row["criterion"], row["granularity"]) for row in table} == {
        (name, granularity.value) for name, granularity in expected
    }
    for row in table:
        found = expected[row["criterion"], Granularity(row["granularity"])].per_layer
        value = found[0][row["layer"]] if row["granularity"] == "layer" else found[row["layer"]][row["unit"]]
        assert row["score"] == pytest.approx(float(value), rel=1e-5)


def test_a_run_is_scored_on_its_own_calibration_data(finished: Path, tmp_path: Path, cascade) -> None:
    out = tmp_path / "scores"
    result = cascade("score", finished, *HERE, "--criteria", "taylor,wanda", "--samples", 12, "--out", out)
    assert result.exit_code == 0, result.output
    assert "12 samples" in result.stdout
    document = json.loads((out / "score.json").read_text())
    assert document["task"] == "diagnosis"
    assert document["data"]["split"] == "load:3"
    from workflows.prepare import prepare_data
    from workflows.rundir import RunDir

    train = prepare_data(RunDir(path=finished).config()).data.train
    expected = score(load_pruned(finished / "model"), [subset(train, 12, 0)], ("taylor",))
    rows = [
        row["score"]
        for row in pq.read_table(out / "scores.parquet").to_pylist()
        if (row["criterion"], row["granularity"]) == ("taylor", "channel")
    ]
    torch.testing.assert_close(
        torch.tensor(rows),
        torch.cat(expected["taylor", Granularity.CHANNEL].per_layer).float(),
        rtol=1e-4,
        atol=1e-7,
    )


def test_report_and_ls_know_score_runs(language_model: Path, tmp_path: Path, cascade) -> None:
    out = tmp_path / "run"
    assert cascade("score", language_model, *RANDOM, *HERE, "--out", out, "--quiet").exit_code == 0
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    again = cascade("report", out)
    assert again.exit_code == 0, again.output
    assert (out / "report.html").read_text() == page
    assert json.loads(cascade("report", out, "--json").stdout) == json.loads((out / "score.json").read_text())
    listed = json.loads(cascade("ls", "scores", "--root", tmp_path, "--json").stdout)
    assert [row["run"] for row in listed["rows"]] == [str(out)]


MISTAKES = {
    "criterion": (["--criteria", "tailor"], 2, "unknown criterion 'tailor'. Did you mean 'taylor'?"),
    "no criterion": (["--criteria", ","], 2, "--criteria: name at least one"),
    "no samples": (["--samples", 0], 2, "--samples: must be ≥ 1, got 0"),
    "too many shards": (["--shards", 4], 2, "shards: must be between 1 and the model's 3 blocks, got 4"),
    "positions": (["--length", 33], 1, "samples have 33 tokens, the model has 32 positions"),
    "float16": (["--dtype", "float16"], 2, "float16 is slow and inexact on a CPU"),
    "dtype": (["--dtype", "int8"], 2, "--dtype: must be auto, float32, bfloat16, float16; got 'int8'"),
    "device": (["--device", "tpu"], 2, "--device: must be auto, cpu or cuda; got 'tpu'"),
    "workers": (["--workers", -1], 2, "--workers: must be ≥ 0"),
    "text": (["--data", "no-such.txt"], 2, "expected a tokenizer"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_request(mistake: str, language_model: Path, tmp_path: Path, cascade) -> None:
    arguments, code, message = MISTAKES[mistake]
    told(
        cascade("score", language_model, *RANDOM, *HERE, "--out", tmp_path / "run", *arguments), code, message
    )
    assert not (tmp_path / "run").exists()


def told(result, code: int, message: str) -> None:
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("cascade: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output


def test_an_existing_folder_is_not_overwritten(language_model: Path, tmp_path: Path, cascade) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    told(cascade("score", language_model, *RANDOM, *HERE, "--out", tmp_path / "run"), 2, "is not empty")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_data_must_be_named_for_a_bare_language_model(language_model: Path, tmp_path: Path, cascade) -> None:
    told(
        cascade("score", language_model, *HERE, "--out", tmp_path / "run"),
        2,
        "give calibration data: --data FILE",
    )


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def test_a_missing_shard(broken: Path, tmp_path: Path, cascade) -> None:
    file = shard_of(broken, "transformer.h.1.mlp.c_fc.weight")
    file.unlink()
    told(
        cascade("score", broken, *RANDOM, *HERE, "--out", tmp_path / "run"), 1, f"the index names {file.name}"
    )


def test_a_truncated_shard(broken: Path, tmp_path: Path, cascade) -> None:
    file = shard_of(broken, "transformer.h.1.mlp.c_fc.weight")
    file.write_bytes(file.read_bytes()[:-100])
    told(
        cascade("score", broken, *RANDOM, *HERE, "--out", tmp_path / "run"),
        1,
        f"{file}: not a complete safetensors",
    )


def test_integer_weights(broken: Path, tmp_path: Path, cascade) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    file = shard_of(broken, name)
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].to(torch.int8)}, file)
    told(cascade("score", broken, *RANDOM, *HERE, "--out", tmp_path / "run"), 1, f"{name} has type I8")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("criterion", ["taylor", "wanda", "amp", "block_influence"])
def test_nan_in_a_layer_is_told_with_shard_and_layer(
    criterion: str, shards: int, broken: Path, tmp_path: Path, cascade
) -> None:
    name = "transformer.h.1.mlp.c_fc.weight"
    file = shard_of(broken, name)
    tensors = load_file(file)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file)
    where = "shard 1 (blocks 1 to 1): layer 1:" if shards == 3 else "shard 0 (blocks 0 to 2): layer"
    arguments = (*RANDOM, *HERE, "--shards", shards, "--criteria", criterion, "--out", tmp_path / "run")
    result = cascade("score", broken, *arguments)
    told(result, 1, "is not finite")
    if criterion != "taylor":  # on the way back the last shard meets it first
        assert where in result.stderr
    assert not (tmp_path / "run").exists()
