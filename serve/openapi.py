"""Routes with their description: what FastAPI would derive from annotations, for bodies that are parsed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve import schemas

REF = "#/components/schemas/{model}"
REFUSALS = {
    400: "not JSON, or not a form",
    401: "no token, or another",
    404: "no such model",
    408: "the body did not come in time",
    413: "more than is taken",
    415: "another content type",
    422: "cannot be carried out as it was asked",
    503: "busy: try again after Retry-After seconds",
}
DATA = {"type": "string", "description": "a piece of the answer as JSON; in the end [DONE]"}
EVENT = {"type": "object", "properties": {"data": DATA}, "required": ["data"]}
EVENTS = {"content": {"text/event-stream": {"schema": EVENT}}}
BODIES: tuple[type[BaseModel], ...] = (
    schemas.DiagnoseRequest,
    schemas.BatchRequest,
    schemas.CompletionRequest,
    schemas.UploadFields,
)

Handler = Callable[..., Any]


def post(
    app: FastAPI,
    path: str,
    handler: Handler,
    body: type[BaseModel],
    answer: type[BaseModel],
    *,
    upload: type[BaseModel] | None = None,
    streams: bool = False,
) -> None:
    """A route that takes ``body`` as JSON, and where given a file with the fields of ``upload`` as a form; ``streams``
    where it may answer with events, each of them an ``answer``."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": REF.format(model=body.__name__)}}}
    if upload is not None:
        content["multipart/form-data"] = {"schema": _form(upload)}
    app.add_api_route(
        path,
        handler,
        methods=["POST"],
        response_model=None,
        responses={200: {"model": answer, **(EVENTS if streams else {})}, **_refusals(REFUSALS)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


def get(app: FastAPI, path: str, handler: Handler, answer: type[BaseModel] | None) -> None:
    """A route without a body; without ``answer`` it answers in plain text."""
    responses: dict[int | str, dict[str, Any]] = {200: {"model": answer}}
    if answer is None:
        responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    app.add_api_route(
        path,
        handler,
        methods=["GET"],
        response_model=None,
        responses={**responses, **_refusals({code: REFUSALS[code] for code in (401, 503)})},
    )


def describe(app: FastAPI) -> None:
    """Add the bodies' schemas and the token to what ``/openapi.json`` says."""
    derived = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = derived()
            _, definitions = models_json_schema([(body, "validation") for body in BODIES], ref_template=REF)
            parts = document.setdefault("components", {})
            parts["schemas"] = {**parts.get("schemas", {}), **definitions["$defs"]}
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _refusals(codes: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": schemas.ErrorAnswer, "description": text} for code, text in codes.items()}


def _form(fields: type[BaseModel]) -> dict[str, Any]:
    form = fields.model_json_schema(ref_template=REF)
    form["properties"] = {
        "file": {"type": "string", "format": "binary", "description": ".mat, .csv, .npy or .wav"},
        **form["properties"],
    }
    form["required"] = ["file", *form.get("required", [])]
    return form
