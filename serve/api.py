"""The HTTP interface: routes, what they take and what they answer.

Bodies are parsed here and not by FastAPI: a window of 1,024 samples is read an order of magnitude faster that way,
and every finding becomes the same kind of answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from serve import openapi, reading, schemas
from serve.errors import Refused, internal, invalid, too_large
from serve.guard import Guard, error_document, headers_of, sse
from serve.language import Writer, writer_for
from serve.service import Service
from serve.variants import Variant

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
KINDS = {401: "unauthorized", 404: "not_found", 405: "not_found", 413: "too_large", 503: "overloaded"}


def application(service: Service, *, token: str | None = None) -> ASGIApp:
    """Every route, answered by ``service``; ``token`` where one is asked for."""
    app = FastAPI(title="cascade-ops", version="1", docs_url=None, redoc_url=None)
    limits = service.config.limits
    app.add_exception_handler(Refused, _refused)  # type: ignore[arg-type]  # starlette's handlers take any exception
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)  # the guard logs it
    _diagnosis_routes(app, service)
    _completion_routes(app, service)
    _other_routes(app, service)
    _page_routes(app)
    openapi.describe(app)
    guard = Guard(  # outermost, so that a refusal costs little
        app,
        _counter(service),
        token=token,
        free=frozenset({"/healthz", "/readyz", "/openapi.json", *pages()}),
        routes=frozenset({*PATHS, *pages()}),
        most_bytes=int(limits.body_mb * 2**20),
        most_requests=limits.ongoing + limits.queued,
        body_s=limits.body_s,
    )
    service.held = lambda: guard.in_hand
    return guard


PATHS = (
    "/v1/diagnose",
    "/v1/diagnose/batch",
    "/v1/completions",
    "/v1/models",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
)


def _diagnosis_routes(app: FastAPI, service: Service) -> None:
    async def diagnose(request: Request) -> Response:
        """Diagnose one recording: samples as JSON, or a .mat, .csv, .npy or .wav file."""
        began = time.perf_counter()
        asked, sample = await (reading.upload if reading.is_form(request) else reading.recording)(
            request, service
        )
        variant = reading.chosen(request, service, asked.model)
        (found,) = await service.diagnose([sample], variant, asked.detail, began)
        return _json(found)

    async def diagnose_batch(request: Request) -> Response:
        """Diagnose several recordings, computed together."""
        began = time.perf_counter()
        asked, samples = await reading.recordings(request, service)
        most = service.config.limits.recordings
        if len(samples) > most:
            raise too_large(
                f"expected at most {most} recordings, found {len(samples)}. Send fewer at a time."
            )
        variant = reading.chosen(request, service, asked.model)
        return _json(
            schemas.BatchAnswer(results=await service.diagnose(samples, variant, asked.detail, began))
        )

    openapi.post(
        app, "/v1/diagnose", diagnose, schemas.DiagnoseRequest, schemas.Diagnosis, upload=schemas.UploadFields
    )
    openapi.post(app, "/v1/diagnose/batch", diagnose_batch, schemas.BatchRequest, schemas.BatchAnswer)


def _completion_routes(app: FastAPI, service: Service) -> None:
    async def completions(request: Request) -> Response:
        """Continue a text (OpenAI's completions), whole or as a stream of server-sent events."""
        asked = await reading.text(request)
        variant = reading.chosen(request, service, asked.model)
        if variant.tokenizer is None:
            raise invalid(f"{variant.name} is a classifier: POST /v1/diagnose.", "model")
        writer = await writer_for(service, await service.engine(variant.name), asked)
        if not asked.stream:
            return _json(await writer.whole())
        return StreamingResponse(_events(writer), media_type="text/event-stream")

    openapi.post(
        app, "/v1/completions", completions, schemas.CompletionRequest, schemas.Completion, streams=True
    )


async def _events(writer: Writer) -> AsyncIterator[bytes]:
    async for piece in writer.pieces():
        yield sse(piece.model_dump_json())
    yield sse("[DONE]")


def _other_routes(app: FastAPI, service: Service) -> None:
    async def models() -> Response:
        """Every model on offer."""
        return _json(
            schemas.ModelList(data=[_card(service, variant) for variant in service.variants.values()])
        )

    async def healthz() -> Response:
        """The process answers."""
        return _json(schemas.Status(status="ok"))

    async def readyz() -> Response:
        """The models are loaded."""
        if not service.ready:
            raise Refused(503, "overloaded", "the models are being loaded", retry_after=1)
        return _json(schemas.Status(status="ready"))

    async def metrics() -> Response:
        """Prometheus' text format, of all replicas together."""
        return Response(await service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    openapi.get(app, "/v1/models", models, schemas.ModelList)
    openapi.get(app, "/healthz", healthz, schemas.Status)
    openapi.get(app, "/readyz", readyz, schemas.Status)
    openapi.get(app, "/metrics", metrics, None)


def _page_routes(app: FastAPI) -> None:
    """The page's files, read once: no path of a request is ever opened."""
    for address, file in pages().items():
        app.add_api_route(address, _static(file.read_bytes(), TYPES[file.suffix]), include_in_schema=False)


def pages() -> dict[str, Path]:
    """The page's files by their address."""
    files = [file for file in sorted(PAGE.iterdir()) if file.suffix in TYPES]
    return {"/" if file.name == "index.html" else f"/{file.name}": file for file in files}


def _static(content: bytes, media_type: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=media_type)

    return answer


def _card(service: Service, variant: Variant) -> schemas.ModelCard:
    metric, expected = variant.metric, variant.expected
    return schemas.ModelCard(
        id=variant.name,
        created=variant.created,
        title=variant.title,
        default=variant.name == next(iter(service.variants)),
        baseline=variant.baseline,
        task=variant.task,
        engine=variant.engine,
        version=variant.version,
        compression=variant.compression,
        backbone_params=variant.backbone_params,
        total_params=variant.total_params,
        size_bytes=variant.size_bytes,
        metric=None
        if metric is None
        else schemas.MetricFound(
            name=metric.name, value=metric.value, low=metric.low, high=metric.high, samples=metric.samples
        ),
        classes=list(variant.classes),
        window=expected.window if expected else None,
        rate_hz=expected.rate_hz if expected else None,
        bearing=expected.bearing.name if expected and expected.bearing else None,
        loaded=service.is_loaded(variant.name),
    )


def _counter(service: Service) -> Any:
    def told(model: str, route: str, status: int, seconds: float) -> None:
        service.meter.requests.labels(model, route, str(status)).inc()
        if status == 200 and model:
            service.meter.seconds.labels(model).observe(seconds)

    return told


def _json(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), media_type="application/json")


async def _refused(request: Request, refusal: Refused) -> Response:
    return Response(error_document(refusal), refusal.status, headers_of(refusal))


async def _gone(request: Request, error: Exception) -> Response:
    """For the counts: nobody is there to read it."""
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, internal())


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: no such address, a method it has not, a broken form."""
    kind = KINDS.get(error.status_code, "invalid_request")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    headers = dict(error.headers or {})
    document = error_document(Refused(error.status_code, kind, message))
    return Response(document, error.status_code, headers, media_type="application/json")
