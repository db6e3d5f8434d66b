"""Requests as they come: bodies are bounded before they are parsed, since parsing holds everything else up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cascade_ops.data.readers.uploads import Limits, read_upload
from cascade_ops.data.readers.user import RATE_TOLERANCE
from cascade_ops.errors import DataError
from serve import schemas
from serve.errors import Refused, invalid, too_large, worded
from serve.service import Sample, Service
from serve.variants import Variant

M = TypeVar("M", bound=BaseModel)
LONGEST_PLACE = 120
JSON_SAMPLES = 1_000_000
"""Of one request as JSON, a quarter of a second's parsing; files may hold more."""
FIELDS, SPARE = 8, 1000
"""Colons that a recording may have, and commas and colons of a request beside its recordings'."""
TEXT_BYTES = 12 * schemas.LONGEST_PROMPT
"""Of a request for text: every character of the prompt written as an escaped surrogate pair."""


async def recording(request: Request, service: Service) -> tuple[schemas.DiagnoseRequest, Sample]:
    """One recording as JSON. Raises Refused."""
    asked, (sample,) = await _recordings(request, service, schemas.DiagnoseRequest, lambda one: [one])
    return asked, sample


async def recordings(request: Request, service: Service) -> tuple[schemas.BatchRequest, list[Sample]]:
    """Several recordings as JSON. Raises Refused."""
    return await _recordings(request, service, schemas.BatchRequest, lambda batch: batch.recordings)


async def _recordings(
    request: Request, service: Service, kind: type[M], parts: Callable[[M], Sequence[schemas.Recording]]
) -> tuple[M, list[Sample]]:
    body = await _body(request)
    most = min(JSON_SAMPLES, service.config.limits.samples)
    if body.count(b",") > most + SPARE:  # in a hundredth of the time that parsing takes
        raise too_large(f"expected at most {most} samples in all as JSON. Send a part of them, or a file.")
    many = service.config.limits.recordings
    if body.count(b":") > FIELDS * many + SPARE:
        raise too_large(f"expected at most {many} recordings with their fields. Send fewer at a time.")
    asked = _validated(kind, body)
    return asked, [_sample(one, most) for one in parts(asked)]


async def text(request: Request) -> schemas.CompletionRequest:
    """The JSON body of a request for text. Raises Refused."""
    body = await _body(request)
    if len(body) > TEXT_BYTES:
        raise too_large(
            f"expected a prompt of at most {schemas.LONGEST_PROMPT} characters, found {len(body)} bytes."
        )
    return _validated(schemas.CompletionRequest, body)


async def upload(request: Request, service: Service) -> tuple[schemas.UploadFields, Sample]:
    """A form with a file. Raises Refused."""
    form = await _form(request)
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise invalid("expected a file in the form field 'file', found none.", "file")
        texts = {name: value for name, value in form.items() if isinstance(value, str) and value.strip()}
        try:
            fields = schemas.UploadFields.model_validate(texts)
        except ValidationError as error:
            raise _finding(error) from None
        content, name = await file.read(), file.filename or ""
    finally:
        await form.close()
    bounds = Limits(max_samples=service.config.limits.samples)
    try:
        found = await service.prepare(
            lambda: read_upload(name, content, channel=fields.channel, limits=bounds), len(content)
        )
    except DataError as error:
        raise invalid(str(error), "file") from None
    rate = found.fs_hz if fields.fs_hz is None else fields.fs_hz
    if rate is None:
        raise invalid(
            "expected the sampling rate, which this file does not state. Give it in hertz.", "fs_hz"
        )
    if found.fs_hz is not None and abs(found.fs_hz - rate) > RATE_TOLERANCE * rate:
        raise invalid(
            f"expected the file's own sampling rate, {found.fs_hz:g} Hz, found {rate:g} Hz.", "fs_hz"
        )
    rpm = fields.rpm if fields.rpm is not None else found.rpm
    return fields, Sample(signal=found.signal, fs_hz=rate, rpm=rpm)


def chosen(request: Request, service: Service, name: str | None) -> Variant:
    """The model asked for, noted for the counts. Raises Refused."""
    variant = service.variant(name)
    request.scope["state"]["model"] = variant.name
    return variant


def is_form(request: Request) -> bool:
    return _content_type(request, "") == "multipart/form-data"


def _content_type(request: Request, default: str) -> str:
    return request.headers.get("content-type", default).partition(";")[0].strip().lower()


async def _body(request: Request) -> bytes:
    given = _content_type(request, "application/json")
    if given != "application/json" and not given.endswith("+json"):
        raise Refused(
            415, "invalid_request", f"expected Content-Type: application/json, found {given[:80]!r}"
        )
    return await request.body()


def _validated(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise _finding(error) from None


def _sample(asked: schemas.Recording, most: int) -> Sample:
    if len(asked.signal) > most:
        raise too_large(
            f"expected at most {most} samples, found {len(asked.signal)}. Send a part of the recording."
        )
    signal = np.array(asked.signal, dtype=np.float64)
    return Sample(signal=signal, fs_hz=asked.fs_hz, rpm=asked.rpm, preprocessed=asked.preprocessed)


class _InMemory(MultiPartParser):
    """Bodies are bounded; a full disk must not matter."""

    spool_max_size = 2**40


async def _form(request: Request) -> FormData:
    """A form with one file and short texts. Raises Refused."""
    most = len(schemas.UploadFields.model_fields)
    try:
        async with aclosing(request.stream()) as stream:
            parser = _InMemory(request.headers, stream, max_files=1, max_fields=most, max_part_size=4096)
            return await parser.parse()
    except MultiPartException as error:
        reason = error.message
    except (LookupError, UnicodeError):  # no boundary; a character set that is none, or is not for texts
        reason = "another Content-Type"
    raise Refused(400, "invalid_request", f"expected a form with one file, found {reason}")


def _finding(error: ValidationError) -> Refused:
    """Pydantic's first finding as an answer."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    first = findings[0]
    if first["type"] == "json_invalid":
        return Refused(400, "invalid_request", first["msg"])
    place = (schemas.where(first["loc"]) or "")[
        :LONGEST_PLACE
    ] or None  # an unknown key is the sender's own text
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    message = worded(first["msg"])
    return invalid(f"{place}: {message}{more}" if place else message + more, place)
