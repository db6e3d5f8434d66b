"""Each mistake: one clear message, the right exit code, nothing half-written."""

# ruff: noqa: E501  (a table of mistakes reads best with one a line)

from __future__ import annotations

from pathlib import Path

import pytest

MISTAKES = {
    "data": (["--data", "cwruu"], "unknown dataset 'cwruu'. Did you mean 'cwru'?"),
    "split": (["--split", "laod:3"], "Did you mean 'load'?"),
    "model": (["--model", "no/such-model"], "unknown model 'no/such-model'"),
    "model type": (["--set", "model.config.model_type=gtp2"], "Did you mean 'gpt2'?"),
    "model field": (["--set", "model.config.n_haed=2"], "model.config.n_haed: gpt2 has no such field. Did you mean 'n_head'?"),
    "family": (["--set", "model.config={model_type: mpt}"], "'mpt' is not described"),
    "criterion": (["--set", "schedule.stages.0.criterion=tayler"], "schedule.stages.0.criterion: unknown criterion 'tayler'. Did you mean 'taylor'?"),
    "stage": (["--set", "schedule.stages.0.granularity=laier"], "schedule.stages.0.granularity: must be 'layer', 'head', 'kv_group' or 'channel', got 'laier'. Did you mean 'layer'?"),
    "ratio": (["--set", "schedule.stages=[{granularity: head, ratio: 1.5}]", "--set", "schedule.target=null"], "schedule.stages.0.ratio: must be in (0, 1), got 1.5"),
    "key": (["--set", "train.stpes=3"], "train.stpes: unknown key. Did you mean 'steps'?"),
    "section": (["--set", "trian.steps=3"], "trian: unknown key. Did you mean 'train'?"),
    "type": (["--set", "train.steps=many"], "train.steps: must be a valid integer"),
    "override": (["--set", "train.steps"], "expected key=value"),
    "target word": (["--target", "lots"], "schedule.target: must be a compression such as 13.8x, got 'lots'"),
    "target low": (["--target", "0.5x"], "schedule.target: must be a compression > 1"),
    "target high": (["--target", "5000x"], "cannot be met"),
    "patch": (["--set", "model.patch=48"], "patch: must divide the window"),
    "positions": (["--set", "model.patch=16"], "the model has 8 positions"),
    "store": (["--store", "nope://x"], "store: expected a folder or an fsspec URL, got 'nope://x'"),
    "task": (["--set", "task=lm"], "data.name: task lm reads 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_usage_mistakes(mistake: str, tiny: Path, tmp_path: Path, cascade) -> None:
    arguments, message = MISTAKES[mistake]
    before = sorted(tmp_path.iterdir())
    result = cascade("compress", tiny, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("cascade: error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(100)], ids=["empty", "truncated"])
def test_damaged_recording(content: bytes, tiny: Path, tmp_path: Path, cascade) -> None:
    from cascade_ops.data import DATASETS

    folder = tmp_path / "cwru"
    folder.mkdir()
    for remote in DATASETS["cwru"].files:
        (folder / remote.file).write_bytes(content)
    arguments = ["--data", "cwru", "--data-path", folder, "--set", "data.options={}"]
    result = cascade("compress", tiny, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("cascade: error:") == 1
    assert ".mat" in result.stderr
    assert not (tmp_path / "run").exists()


def test_missing_dataset(tiny: Path, tmp_path: Path, cascade) -> None:
    arguments = ["--data", "cwru", "--data-path", tmp_path / "nowhere", "--set", "data.options={}"]
    result = cascade("compress", tiny, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 1
    assert "cascade data fetch cwru" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not YAML"),
        ("- 1", "expected a mapping"),
        ("schedule: {target: 3}", "model: is required"),
        ("model: {config: {n_head: 2}}\nschedule: {target: 3}", "model.config.model_type: is required"),
    ],
)
def test_bad_file(text: str, message: str, tmp_path: Path, cascade) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    result = cascade("compress", path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_file(tmp_path: Path, cascade) -> None:
    result = cascade("compress", tmp_path / "no.yaml")
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_existing_run_is_kept(tiny: Path, finished: Path, cascade) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = cascade("compress", tiny, "--out", finished, "--seed", "5", "--set", "train.steps=21")
    assert result.exit_code == 2
    assert "is there already (seed: 0 → 5; train.steps: 20 → 21)" in result.stderr
    assert f"cascade compress --resume {finished}" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_foreign_folder_is_kept(tiny: Path, tmp_path: Path, cascade) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years of work")
    result = cascade("compress", tiny, "--out", folder)
    assert result.exit_code == 2
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_resume_of_nothing(tmp_path: Path, cascade) -> None:
    result = cascade("compress", "--resume", tmp_path / "none")
    assert result.exit_code == 1
    assert "expected a run directory" in result.stderr


@pytest.mark.parametrize("arguments", [["comprss"], ["compress", "--tarrget", "3"]])
def test_misspelt_command_and_option(arguments: list[str], cascade) -> None:
    result = cascade(*arguments)
    assert result.exit_code == 2
    assert "compress" in result.stderr or "--target" in result.stderr


@pytest.mark.parametrize("what", ["inspect", "eval", "report"])
def test_no_such_run(what: str, tmp_path: Path, cascade) -> None:
    result = cascade(what, tmp_path / "none")
    assert result.exit_code in (1, 2)
    assert result.stderr.count("cascade: error:") == 1
