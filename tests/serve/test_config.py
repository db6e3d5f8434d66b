"""A configuration is checked before anything starts, and says where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade_ops.errors import CascadeError
from serve.config import is_loopback, load_config, model_of, read_config
from serve.settings import token_of
from serve.variants import variants_of

MODELS = {"models": [{"path": "somewhere"}]}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "models: is required"),
        ({"models": []}, "models: "),
        ({**MODELS, "modls": 1}, "modls: unknown key. Did you mean 'models'?"),
        ({**MODELS, "limits": {"bodymb": 1}}, "limits.bodymb: unknown key. Did you mean 'body_mb'?"),
        ({"models": [{"pth": "x"}]}, "models.0.pth: unknown key. Did you mean 'path'?"),
        ({**MODELS, "port": 70000}, "port: must be less than or equal to 65535, got 70000"),
        ({**MODELS, "batch": {"size": 0}}, "batch.size: must be greater than or equal to 1, got 0"),
        ({**MODELS, "batch": {"size": 100}}, "batch.size (100) must not exceed limits.ongoing (64)"),
        ({**MODELS, "replicas": {"min": 3, "max": 2}}, "replicas: max must be at least min (3), got 2"),
        ({**MODELS, "front": "direct", "replicas": {"max": 2}}, "front: direct is for one replica"),
        ({**MODELS, "engine": "onxx"}, "unknown engine 'onxx'. Did you mean 'onnx'?"),
        ({"models": [{"path": "x", "name": "a/b"}]}, "models.0.name: "),
        ({**MODELS, "bearing": {"balls": 9}}, "bearing.ball_diameter: is required"),
    ],
)
def test_findings_are_located(document: dict[str, Any], message: str) -> None:
    with pytest.raises(CascadeError) as error:
        read_config(document)
    assert message in str(error.value)


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("models: [{path: a}]\nport: 1\nlimits: {queued: 3}\n")
    config = load_config(path, ["b=c"], ["limits.queued=7", "batch.size=2"], port=2, engine=None)
    assert config.models[0].model_dump() == {"path": "c", "name": "b", "engine": None}
    assert (config.port, config.limits.queued, config.batch.size, config.engine) == (2, 7, 2, "eager")


@pytest.mark.parametrize(
    ("text", "found"), [("a=b/c", {"name": "a", "path": "b/c"}), ("x/a=b", {"path": "x/a=b"})]
)
def test_a_path_may_hold_an_equals_sign(text: str, found: dict[str, str]) -> None:
    assert model_of(text) == found


@pytest.mark.parametrize("content", ["[1]", "a: [", "\x00"])
def test_a_file_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(CascadeError, match=r"serve\.yaml: expected a"):
        load_config(path, [])


def test_loopback_is_the_default_and_known() -> None:
    assert read_config(MODELS).loopback
    assert [
        is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")
    ] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_token_must_be_worth_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config({**MODELS, "token_env": "SOME_TOKEN"})
    for value in (None, "", "short"):
        monkeypatch.delenv("SOME_TOKEN", raising=False)
        if value is not None:
            monkeypatch.setenv("SOME_TOKEN", value)
        with pytest.raises(CascadeError, match="at least 16 printable"):
            token_of(config)
    monkeypatch.setenv("SOME_TOKEN", "x" * 16)
    assert token_of(config) == "x" * 16


def offered(*models: dict[str, str], **settings: Any) -> dict[str, Any]:
    return dict(variants_of(read_config({"models": list(models), **settings})))


def test_runs_and_folders_are_offered(finished: Path) -> None:
    run, model = str(finished), str(finished / "model")
    assert list(offered({"path": run})) == ["run", "dense"]
    assert list(offered({"path": run}, baseline="none")) == ["run"]
    both = offered({"path": run, "name": "a"}, {"path": model, "name": "b", "engine": "int8"})
    assert list(both) == ["a", "b", "dense"]
    assert both["a"].version == both["b"].version != both["dense"].version
    assert both["b"].compression is None
    assert both["b"].engine == "int8"
    dense = offered({"path": str(finished / "steps/00-dense/model"), "name": "big"}, {"path": run})
    assert list(dense) == ["big", "run"], "the dense model is there already"


@pytest.mark.parametrize("kind", ["missing", "empty", "unfinished", "report", "twice", "taken"])
def test_what_cannot_be_offered(finished: Path, tmp_path: Path, kind: str) -> None:
    run = {"path": str(finished)}
    (tmp_path / "config.yaml").write_text("model: {}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "report.json").write_text(json.dumps({"schema": "other/1"}))
    models, message = {
        "missing": ([{"path": str(tmp_path / "nowhere")}], "no such folder"),
        "empty": ([{"path": str(finished / "steps")}], "found no config.json"),
        "unfinished": ([{"path": str(tmp_path)}], "cascade compress --resume"),
        "report": ([{"path": str(broken)}], "expected a run's report"),
        "twice": ([run, run], "two are called 'run'"),
        "taken": ([{**run, "name": "dense"}], "'dense' is the baseline's name"),
    }[kind]
    with pytest.raises(CascadeError, match=message):
        offered(*models)
