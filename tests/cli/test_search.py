"""``cascade search`` as a person meets it: what is refused, before anything is written, and how it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from tests.jobs import TINY

Cascade = Callable[..., Result]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--objective", "accurcy"), "unknown objective 'accurcy'. Did you mean 'accuracy'?"),
        (
            ("--objective", "perplexity"),
            "search.objectives: task diagnosis measures accuracy, not perplexity",
        ),
        (("--objective", "loss,loss"), "search.objectives: must name each choice once"),
        (("--trials", "0"), "search.trials: must be ≥ 1, got 0"),
        (("--limit", "latency"), "--limit latency: expected figure=value, such as latency=0.5 (no =)"),
        (("--limit", "latency=fast"), "--limit latency=fast: expected figure=value"),
        (("--limit", "accuracy=0.9"), "unknown limit 'accuracy'"),
        (("--limit", "params=-3"), "search.limits.params: must be > 0, got -3"),
        (("--sampler", "bayes"), "search.sampler: must be 'auto', 'tpe', 'nsga2' or 'random', got 'bayes'"),
        (("--set", "search.trails=5"), "search.trails: unknown key. Did you mean 'trials'?"),
        (("--set", "search.runtime=gguff"), "unknown export target 'gguff'"),
        (("--set", "search.criteria=[tailor]"), "unknown criterion 'tailor'. Did you mean 'taylor'?"),
        (("--set", "search.fidelities=[0.5,0.2]"), "search.fidelities: must increase within [0, 1)"),
        (("--set", "search.orders=[layer head]"), "search.orders: each must name layer, head, channel once"),
        (("--objective", "loss,params", "--set", "search.scheduler=asha"), "asha compares one figure"),
        (("--set", "search.granularities=[layer,head]"), "landing on a target takes channels"),
        (("--set", "search=5"), "search: must be a mapping of keys to values, got 5"),
        (("--target", "5000x"), "no more to give"),
        (("--set", "search.criteria=[block_influence]"), "none of block_influence can score heads"),
    ],
)
def test_refused(cascade: Cascade, tiny: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    out = tmp_path / "out"
    result = cascade("search", tiny, "--out", out, *arguments)
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.exists()


def test_resume_takes_nothing_that_would_change_it(cascade: Cascade, tmp_path: Path) -> None:
    result = cascade("search", "--resume", tmp_path, "--objective", "accuracy")
    assert result.exit_code == 2
    assert "--resume continues the search as it was" in result.output


def test_resume_of_nothing(cascade: Cascade, tmp_path: Path) -> None:
    result = cascade("search", "--resume", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "expected a search with search.yaml, found none" in result.output


def test_a_full_folder_is_left_alone(cascade: Cascade, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    result = cascade("search", tiny, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def test_a_bound_that_puts_the_target_out_of_reach_is_told_before_any_trial(
    cascade: Cascade, tmp_path: Path
) -> None:
    """The check of this model allows less than the anatomy does; the folder may then serve another target."""
    document = {**TINY, "search": {"rounds": 1, "loss_bound": 1e-6}}
    path = tmp_path / "tight.yaml"
    path.write_text(yaml.safe_dump(document))
    out = tmp_path / "out"
    result = cascade("search", path, "--target", "12x", "--out", out)
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert "the best that can be reached is" in said
    assert "What binds is" in said
    assert not (out / "optuna.db").exists()
    assert not (out / "trials").exists()


def test_a_configuration_with_a_search_section_still_compresses(cascade: Cascade, tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(yaml.safe_dump({**TINY, "search": {"trials": 3}}))
    result = cascade("compress", path, "--out", tmp_path / "run", "--set", "train.steps=2", "-q")
    assert result.exit_code == 0, result.output


def test_data_that_cannot_be_read_leaves_no_folder(cascade: Cascade, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cascade("search", tiny, "--out", out, "--set", "data.split=load:9")
    assert result.exit_code != 0
    assert not out.exists()
