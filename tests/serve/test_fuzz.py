"""Requests made up from the OpenAPI description, right and wrong ones: never a 500, always what it promises."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.serve.conftest import Served


def rejected(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """What breaks the description is refused; 413 is a refusal, too."""
    return None if response.status_code == 413 else negative_data_rejection(context, response, case)


CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    rejected,
    unsupported_method,
]
EXAMPLES = int(os.environ.get("CASCADE_FUZZ_EXAMPLES", "30"))
"""Of every path; more where somebody has the time."""
PATHS = (
    "/v1/diagnose",
    "/v1/diagnose/batch",
    "/v1/completions",
    "/v1/models",
    "/healthz",
    "/readyz",
    "/metrics",
)


def operations(served: Served) -> Iterator[schemathesis.APIOperation]:
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    for found in described.get_all_operations():
        yield found.ok()


def fuzz(operation: schemathesis.APIOperation, mode: GenerationMode, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered_as_described(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    answered_as_described()


@pytest.mark.parametrize(
    ("server", "path"), [*(("served", path) for path in PATHS), ("language", "/v1/completions")]
)
def test_any_request_is_answered_as_described(server: str, path: str, request: pytest.FixtureRequest) -> None:
    operation = next(one for one in operations(request.getfixturevalue(server)) if one.path == path)
    fuzz(operation, GenerationMode.POSITIVE, EXAMPLES)
    if operation.method == "post":
        fuzz(operation, GenerationMode.NEGATIVE, 2 * EXAMPLES)


def test_every_path_is_tried(served: Served) -> None:
    assert {operation.path for operation in operations(served)} == set(PATHS)


def test_without_the_token_nothing_is_answered(guarded: Served) -> None:
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=next(operations(guarded)).as_strategy())
    def refused(case: schemathesis.Case) -> None:
        assert case.call(headers={"authorization": "Bearer wrong"}).status_code == 401

    refused()
