"""``cluster.yaml`` is a file that Ray's launcher accepts, and that excludes what must not travel."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def document():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_rays_launcher_accepts_it(document) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(document))


def test_rays_launcher_would_refuse_a_misspelt_key(document) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config({**document, "max_wrokers": 3}))


def test_environments_and_models_stay_where_they_are(document) -> None:
    assert {".venv", ".git", "models"} <= set(document["rsync_exclude"])
