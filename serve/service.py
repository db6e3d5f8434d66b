"""The application without its web server: recordings in, diagnoses out, one model thread.

Nothing here knows Ray: ``serve.replica`` puts batching and multiplexing of Ray Serve in the place of ``infer`` and
``engine``.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cascade_ops import diagnosis as core
from cascade_ops.data.labels import in_words
from cascade_ops.errors import DataError
from cascade_ops.probes import impacts
from serve import engines, schemas
from serve.config import ServeConfig
from serve.engines import Loaded
from serve.errors import Refused, invalid, too_large
from serve.metrics import Ledger, Meter, Snapshot
from serve.together import Together
from serve.variants import Variant, variants_of

T = TypeVar("T")
INLINE_SAMPLES = 16_384
"""Shorter signals are cut at once: handing them to a thread would take longer."""
MOST_WINDOWS = 2048
"""Of one request: a second or so of computing on a small model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Samples with what is known about them."""

    signal: Float[np.ndarray, " samples"]
    fs_hz: float
    rpm: float | None = None
    preprocessed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a model is asked: windows, asked at ``since`` (seconds, monotonic)."""

    loaded: Loaded
    windows: Float[Tensor, "windows samples"]
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """Logits, how long the item waited and its batch took (seconds), and how many requests were in the batch."""

    logits: Float[Tensor, "windows classes"]
    waited: float
    took: float
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A recording as windows, with its evidence."""

    cut: core.Cut
    evidence: schemas.EvidenceFound | None
    missing: str | None


class Service:
    """Every model of ``config`` behind one queue.

    Raises:
        ConfigError, CheckpointError, UsageError: what is configured cannot be served.
    """

    def __init__(self, config: ServeConfig, *, replica: str = "local") -> None:
        self.config = config
        self.variants = variants_of(config)
        self._device = engines.device_for(config.gpus)
        self.meter = Meter(replica)
        self.ready = False
        self.held: Callable[[], int] = lambda: 0  # told by whoever lets requests in
        self._loaded: dict[str, Loaded] = {}
        self._resident: weakref.WeakValueDictionary[str, Loaded] = weakref.WeakValueDictionary()
        self._loading = asyncio.Lock()
        # the number of threads belongs to the thread that computes
        self._model_thread = ThreadPoolExecutor(
            1, "model", initializer=torch.set_num_threads, initargs=(config.threads,)
        )
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._together = Together[Item, Computed](
            self._model_thread, config.batch.size, lambda item: item.loaded.variant.name, self._compute
        )

    async def start(self) -> None:
        """Load what fits, the default first; then be ready."""
        for name in list(self.variants)[: self.config.loaded]:
            await self.engine(name)
        expected = self.variant(None).expected
        if (
            expected is not None
        ):  # filters are designed and modules imported before the first request, not by it
            probe = impacts(expected.window, expected.rate_hz)[0].astype(np.float64)
            sample = Sample(signal=probe, fs_hz=expected.rate_hz, rpm=1.0)
            await self.prepare(lambda: _prepared(sample, 0, self.variant(None), "lines"), len(probe))
        self.ready = True

    def variant(self, name: str | None) -> Variant:
        """By name, or the default. Raises Refused."""
        if name is None:
            return next(iter(self.variants.values()))
        if name not in self.variants:
            raise Refused(
                404,
                "not_found",
                f"no model is called {name[:64]!r}. Known: {', '.join(self.variants)}.",
                "model",
            )
        return self.variants[name]

    def is_loaded(self, name: str) -> bool:
        """Whether it is in memory now."""
        return name in self._resident

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self._together.waiting

    async def engine(self, name: str) -> Loaded:
        """The model, loaded if need be."""
        async with self._loading:
            if name not in self._loaded:
                self._loaded[name] = await self.fetch(name)
        return self._loaded[name]

    async def fetch(self, name: str) -> Loaded:
        """The model from its folder, ready to answer."""
        loaded = await self.on_model_thread(lambda: engines.load(self.variants[name], device=self._device))
        self._resident[name] = loaded
        return loaded

    async def infer(self, item: Item) -> Computed:
        """Together with whoever else asks this model."""
        return await self._together.ask(item)

    def _compute(self, items: Sequence[Item]) -> list[Computed]:
        """All of ``items``, which are one model's, on its thread."""
        loaded = items[0].loaded
        self.meter.batch.labels(loaded.variant.name).observe(len(items))
        began = time.perf_counter()
        windows = torch.cat([item.windows for item in items])
        logits = engines.answer(loaded.engine, windows, bitwise=self.config.bitwise)
        ended = time.perf_counter()
        sizes = [len(item.windows) for item in items]
        return [
            Computed(logits=piece, waited=began - item.since, took=ended - began, batch=len(items))
            for item, piece in zip(items, logits.split(sizes), strict=True)
        ]

    async def on_model_thread(self, work: Callable[[], T]) -> T:
        """Where all computing happens, one thing at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work)

    async def prepare(self, work: Callable[[], T], size: int) -> T:
        """Reading and cutting ``size`` samples or bytes: at once, or on a thread of its own."""
        if size <= INLINE_SAMPLES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def diagnose(
        self, samples: Sequence[Sample], variant: Variant, detail: schemas.Detail, began: float
    ) -> list[schemas.Diagnosis]:
        """One diagnosis for each of ``samples``; ``began`` is when the request arrived.

        Raises:
            Refused: a recording that cannot be diagnosed.
        """
        size = sum(len(sample.signal) for sample in samples)
        ready = await self.prepare(
            lambda: [_prepared(one, n, variant, detail) for n, one in enumerate(samples)], size
        )
        sizes = [len(one.cut.windows) for one in ready]
        if sum(sizes) > MOST_WINDOWS:
            raise too_large(
                f"expected at most {MOST_WINDOWS} windows in all, found {sum(sizes)}. Send fewer recordings."
            )
        asked = time.perf_counter()
        windows = torch.cat([one.cut.windows for one in ready])
        found = await self.infer(Item(loaded=await self.engine(variant.name), windows=windows, since=asked))
        latency = schemas.LatencyMs(
            prepare=_ms(asked - began),
            queue=_ms(found.waited),
            model=_ms(found.took),
            total=_ms(time.perf_counter() - began),
        )
        try:
            return [
                _diagnosis(variant, one, logits, latency, found.batch)
                for one, logits in zip(ready, found.logits.split(sizes), strict=True)
            ]
        except DataError as error:
            raise invalid(str(error), "signal") from None

    def snapshot(self) -> Snapshot:
        """What was counted here."""
        return self.meter.snapshot(held=self.held(), waiting=self.waiting)

    async def metrics(self) -> bytes:
        """Of this process alone."""
        ledger = Ledger()
        ledger.report(self.meter.replica, self.snapshot())
        return ledger.text()

    def stop(self) -> None:
        """Finish what is being computed."""
        for pool in (self._preparing, self._model_thread):
            pool.shutdown(wait=True, cancel_futures=True)


def _prepared(sample: Sample, index: int, variant: Variant, detail: schemas.Detail) -> Prepared:
    expected = variant.expected
    if expected is None:
        raise invalid(f"{variant.name} is a language model: POST /v1/completions.", "model")
    try:
        if sample.preprocessed:
            cut = core.prepared(sample.signal, expected)
        else:
            cut = core.cut(sample.signal, sample.fs_hz, expected)
        found, missing = _evidence(sample, cut, expected, detail)
    except DataError as error:
        field, colon, rest = str(error).partition(": ")
        if colon and field in ("fs_hz", "signal"):
            raise invalid(rest, field) from None
        raise invalid(str(error), "signal") from None
    return Prepared(cut=cut, evidence=found, missing=missing)


def _evidence(
    sample: Sample, cut: core.Cut, expected: core.Expected, detail: schemas.Detail
) -> tuple[schemas.EvidenceFound | None, str | None]:
    """What the envelope spectrum shows, or why nothing is said about it."""
    if detail == "none":
        return None, None
    missing = None
    if expected.bearing is None:
        missing = "the model's bearing is not known: give its geometry in the server's configuration"
    elif sample.rpm is None:
        missing = "no shaft speed was given: send rpm"
    if missing and detail == "lines":
        return None, missing
    signal = cut.windows[0].double().numpy() if sample.preprocessed else sample.signal
    rate = expected.rate_hz if sample.preprocessed else sample.fs_hz
    found = core.evidence(signal, rate, sample.rpm, expected)
    full = detail == "full"
    return schemas.EvidenceFound(
        bearing=expected.bearing.name if expected.bearing else None,
        rpm=sample.rpm,
        source="window" if sample.preprocessed or cut.available == 1 else "recording",
        lines=[
            schemas.LineFound(name=line.name, hz=line.hz, prominence=line.prominence, fault=line.fault)
            for line in found.lines
        ],
        strongest=found.strongest,
        spectrum=_spectrum(found) if full else None,
        waveform=schemas.Waveform(seconds_per_sample=1 / rate, samples=core.shown_waveform(signal))
        if full
        else None,
    ), missing


def _spectrum(found: core.Evidence) -> schemas.Spectrum:
    hz, amplitude = core.shown_spectrum(found)
    return schemas.Spectrum(hz=hz, amplitude=amplitude)


def _diagnosis(
    variant: Variant, one: Prepared, logits: Tensor, latency: schemas.LatencyMs, batch: int
) -> schemas.Diagnosis:
    assert variant.expected is not None
    verdict = core.conclude(logits)
    label = variant.classes[verdict.likeliest]
    return schemas.Diagnosis(
        model=schemas.ModelUsed(name=variant.name, version=variant.version, engine=variant.engine),
        diagnosis=label,
        title=in_words(label),
        confidence=verdict.probabilities[verdict.likeliest],
        probabilities=dict(zip(variant.classes, verdict.probabilities, strict=True)),
        windows=schemas.WindowsUsed(
            used=len(one.cut.windows),
            available=one.cut.available,
            samples=variant.expected.window,
            rate_hz=variant.expected.rate_hz,
            agreement=verdict.agreement,
        ),
        evidence=one.evidence,
        evidence_missing=one.missing,
        latency_ms=latency,
        batch=batch,
    )


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
