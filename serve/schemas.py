"""Requests and answers, as pydantic models: the contract of the HTTP interface."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Detail = Literal["none", "lines", "full"]
Hertz = Annotated[float, Field(gt=0, le=1e7, description="Sampling rate in hertz.")]
Rpm = Annotated[float, Field(gt=0, le=1e6, description="Shaft speed in revolutions per minute.")]
ModelName = Annotated[
    str, Field(max_length=64, description="One of GET /v1/models; the first where left out.")
]
LONGEST_PROMPT = 200_000
Stop = Annotated[str, Field(max_length=256)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Recording(_Request):
    """Samples in any one unit, with what is known about how they were taken."""

    signal: Annotated[list[float], Field(min_length=1, fail_fast=True)]  # a million findings help nobody
    fs_hz: Hertz
    rpm: Rpm | None = None
    preprocessed: Annotated[
        bool, Field(description="The samples are whole windows, cut and normalised as the model takes them.")
    ] = False


class DiagnoseRequest(Recording):
    """One recording to diagnose."""

    model: ModelName | None = None
    detail: Detail = "lines"


class BatchRequest(_Request):
    """Several recordings for one model."""

    recordings: Annotated[list[Recording], Field(min_length=1, fail_fast=True)]
    model: ModelName | None = None
    detail: Detail = "none"


class UploadFields(_Request):
    """The text fields beside an uploaded file. The rate may be left out where the file states it."""

    fs_hz: Hertz | None = None
    rpm: Rpm | None = None
    channel: Annotated[str, Field(max_length=200)] = ""
    model: ModelName | None = None
    detail: Detail = "lines"


class ModelUsed(_Answer):
    """Which model answered, by which engine; ``version`` are digits of a hash of its weights."""

    name: str
    version: str
    engine: str


class WindowsUsed(_Answer):
    """How the recording was cut: ``used`` of ``available`` windows; ``agreement`` is the share that says the same."""

    used: int
    available: int
    samples: int
    rate_hz: float
    agreement: float


class LineFound(_Answer):
    """A characteristic frequency; prominence is its peak over the median around it (about 1: no line)."""

    name: str
    hz: float
    prominence: float
    fault: str


class Spectrum(_Answer):
    """Of the envelope: hertz, and amplitude in the signal's unit."""

    hz: list[float]
    amplitude: list[float]


class Waveform(_Answer):
    """The beginning of the signal, without its mean."""

    seconds_per_sample: float
    samples: list[float]


class EvidenceFound(_Answer):
    """What the envelope spectrum shows, for a person to judge by."""

    bearing: str | None
    rpm: float | None
    source: Literal["recording", "window"]
    lines: list[LineFound]
    strongest: str | None
    spectrum: Spectrum | None = None
    waveform: Waveform | None = None


class LatencyMs(_Answer):
    """Milliseconds: reading and cutting, waiting, computing; ``total`` is from the request's arrival here."""

    prepare: float
    queue: float
    model: float
    total: float


class Diagnosis(_Answer):
    """The answer to one recording."""

    model: ModelUsed
    diagnosis: str
    title: str
    confidence: float
    probabilities: dict[str, float]
    windows: WindowsUsed
    evidence: EvidenceFound | None
    evidence_missing: str | None
    latency_ms: LatencyMs
    batch: Annotated[int, Field(description="Requests that were computed together.")]


class BatchAnswer(_Answer):
    """One diagnosis for each recording, in order."""

    results: list[Diagnosis]


class MetricFound(_Answer):
    """A run's own measurement of a model, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    samples: int


class ModelCard(_Answer):
    """One model on offer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "cascade-ops"
    title: str
    default: bool
    baseline: bool
    task: str
    engine: str
    version: str
    compression: float | None
    backbone_params: int
    total_params: int
    size_bytes: int
    metric: MetricFound | None
    classes: list[str]
    window: int | None
    rate_hz: float | None
    bearing: str | None
    loaded: bool


class ModelList(_Answer):
    """Every model on offer."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Status(_Answer):
    """Of the process, or of its readiness."""

    status: str


class ErrorBody(_Answer):
    """``type``: invalid_request, unauthorized, not_found, timeout, too_large, overloaded or internal."""

    type: str
    message: str
    field: str | None = None


class ErrorAnswer(_Answer):
    """Every answer that is not a success."""

    error: ErrorBody


class StreamOptions(_Request):
    """Of a streamed completion."""

    include_usage: bool = False


class CompletionRequest(_Request):
    """OpenAI's legacy completions, as far as one model on one machine goes: one prompt, one choice."""

    model: ModelName | None = None
    prompt: (
        Annotated[str, Field(min_length=1, max_length=LONGEST_PROMPT)]
        | Annotated[
            list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=LONGEST_PROMPT, fail_fast=True)
        ]
    )
    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = None


class Choice(_Answer):
    """Text, and why it ended."""

    index: int = 0
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None


class Usage(_Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(_Answer):
    """A whole completion, or a piece of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


def where(location: tuple[int | str, ...]) -> str | None:
    """A finding's place, as ``recordings.3.fs_hz``."""
    named = [str(part) for part in location if part not in ("body", "str", "list[constrained-int]")]
    return ".".join(named) or None
