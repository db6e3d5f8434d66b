"""Realistic reports for the tests: a CWRU cascade, a language model, one too large to draw by unit."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from cascade_ops.granularity import Granularity
from cascade_ops.results import (
    CompressionReport,
    Evaluation,
    Latency,
    LayerScores,
    Metric,
    ModelFigures,
    RecoveryResult,
    SIAVerdict,
    StageResult,
)
from workflows.report import ExampleDiagnosis

CLASSES = (
    "normal",
    "ball 0.007 in",
    "ball 0.014 in",
    "ball 0.021 in",
    "inner 0.007 in",
    "inner 0.014 in",
    "inner 0.021 in",
    "outer 0.007 in",
    "outer 0.014 in",
    "outer 0.021 in",
)


def metric(value: float, name: str = "accuracy", samples: int = 4312) -> Metric:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0) / samples) if value <= 1 else 0.02 * value
    return Metric(name=name, value=value, low=value - half, high=value + half, samples=samples)


def classified(accuracy: float, seed: int = 0) -> Evaluation:
    """Confusion over the ten classes with errors mostly among neighbours."""
    draw = random.Random(seed)
    rows = []
    for truth in range(len(CLASSES)):
        counts = [0] * len(CLASSES)
        counts[truth] = round(431 * min(1.0, accuracy + 0.08 * draw.uniform(-1, 1)))
        for _ in range(431 - counts[truth]):
            counts[(truth + draw.choice((1, 1, 1, 2, -1, -1, 3))) % len(CLASSES)] += 1
        rows.append(tuple(counts))
    recall = {name: rows[i][i] / sum(rows[i]) for i, name in enumerate(CLASSES)}
    return Evaluation(
        metric=metric(accuracy),
        loss=1.4 * (1 - accuracy) + 0.1,
        classes=CLASSES,
        per_class=recall,
        confusion=tuple(rows),
        extra={"macro_f1": metric(accuracy - 0.006, "macro_f1")},
    )


def recovered(steps: int = 300, start: float = 1.6) -> RecoveryResult:
    draw = random.Random(steps)
    losses = tuple(0.35 + start * math.exp(-i / 60) + 0.12 * draw.random() for i in range(steps))
    return RecoveryResult(steps=steps, batch_size=64, trainable_params=24_576, losses=losses, seconds=38.4)


def units(sources: list[int], count: int, keep: int, seed: int) -> tuple[LayerScores, ...]:
    """The ``keep`` best of ``count`` random scores in each layer."""
    draw = random.Random(seed)
    layers = []
    for source in sources:
        scores = tuple(draw.lognormvariate(-4 + 0.2 * source, 1) for _ in range(count))
        best = sorted(range(count), key=lambda i: -scores[i])[:keep]
        layers.append(LayerScores(source=source, scores=scores, kept=tuple(sorted(best))))
    return tuple(layers)


def stage(
    index: int, granularity: str, layers: tuple[LayerScores, ...], params: int, **other: object
) -> StageResult:
    values: dict[str, object] = {
        "index": index,
        "granularity": granularity,
        "criterion": "taylor",
        "allocation": "uniform",
        "ratio": 0.5,
        "params": params,
        "params_total": params + 5_000,
        "layers": layers,
        "before_recovery": classified(0.412, index),
        "after_recovery": classified(0.86, index),
        "recovery": recovered(),
        "seconds": 52.3,
    }
    return StageResult(**(values | other))  # type: ignore[arg-type]


def figures(params: int, milliseconds: float, evaluation: Evaluation) -> ModelFigures:
    return ModelFigures(
        backbone_params=params,
        total_params=params + 5_000,
        size_bytes=4 * (params + 5_000) + 4_000,
        latency_ms=Latency(
            median=milliseconds, p5=0.95 * milliseconds, p95=1.2 * milliseconds, runs=200, threads=1
        ),
        evaluation=evaluation,
    )


def bearing_report() -> CompressionReport:
    """8 layers × 8 heads × 256 channels, cut 13.8-fold in three stages."""
    scores = (0.031, 0.026, 0.004, 0.011, 0.002, 0.0035, 0.019, 0.024)
    kept = {0, 1, 6, 7}
    cut_layers = tuple(
        LayerScores(source=i, scores=(s,), kept=(0,) if i in kept else ()) for i, s in enumerate(scores)
    )
    left = sorted(kept)
    return CompressionReport(
        task="classification",
        dataset="CWRU",
        split="load:3",
        seeds=(0,),
        model="patch transformer, 8 layers, width 64",
        dense=figures(396_800, 5.62, classified(0.871, 1)),
        final=figures(28_750, 1.81, classified(0.854, 2)),
        stages=(
            stage(0, "layer", cut_layers, 198_400, before_recovery=classified(0.533, 5)),
            stage(
                1, "head", units(left, 8, 3, 1), 157_440, ratio=0.625, before_recovery=classified(0.711, 6)
            ),
            stage(
                2,
                "channel",
                units(left, 256, 26, 2),
                28_750,
                ratio=0.898,
                after_recovery=classified(0.854, 2),
            ),
        ),
        dense_training=recovered(900, 2.1),
        seconds=912.7,
        data={
            "source": "recorded",
            "fingerprint": "3f9a1c" + "0d" * 29,
            "notes": ["The shaft speed of 4 recordings is the nominal one: their files hold none."],
            "windows": {"train": 12_950, "validation": 2_158, "test": 4_312},
        },
        config={"target": "13.8x", "stages": [{"granularity": "layer", "ratio": 0.5}], "seed": 0},
        provenance={
            "command": "cascade compress --target 13.8x",
            "commit": "0123abc",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
        independence=(
            SIAVerdict(granularity=Granularity.LAYER, kappa=1, pi=1, holds=True, reason="holds: blocks add."),
            SIAVerdict(
                granularity=Granularity.HEAD,
                kappa=4,
                pi=1,
                holds=False,
                reason="violated (κ=4): K/V are shared.",
            ),
        ),
    )


def example(recording: str = "OR007@6_3, drive end") -> ExampleDiagnosis:
    """An outer-race fault: impacts at BPFO that ring at 3 kHz."""
    fs, rpm, bpfo = 12_000.0, 1730.0, 103.36
    draw = random.Random(7)
    signal = []
    for i in range(1024):
        since = (i / fs) % (1 / bpfo)
        signal.append(math.exp(-since * 700) * math.sin(2 * math.pi * 3000 * since) + 0.12 * draw.gauss(0, 1))
    hz = tuple(i * 1.0 for i in range(1, 1200))
    lines = tuple(
        0.02 * (1 + draw.random())
        + sum(0.5 / h * math.exp(-(((f - h * bpfo) / 1.5) ** 2)) for h in range(1, 6))
        for f in hz
    )
    sure = dict.fromkeys(CLASSES, 0.002)
    return ExampleDiagnosis(
        recording=recording,
        truth="outer 0.007 in",
        fs_hz=fs,
        rpm=rpm,
        waveform=tuple(signal),
        envelope_hz=hz,
        envelope=lines,
        characteristic_hz={"FTF": 11.48, "shaft": 28.83, "BPFO": 103.36, "BSF": 67.97, "BPFI": 156.1},
        dense=sure | {"outer 0.007 in": 0.96, "outer 0.014 in": 0.024},
        final=sure | {"outer 0.007 in": 0.89, "outer 0.014 in": 0.094},
        expected=("BPFO",),
        note="Envelope of the whole recording, 2–4 kHz band.",
    )


def language_report() -> CompressionReport:
    """A small language model: perplexity, no classes, one KV-group stage that diverged before recovery."""

    def read(value: float) -> Evaluation:
        return Evaluation(metric=metric(value, "perplexity", 512), loss=math.log(value))

    broken = Evaluation(
        metric=Metric(name="perplexity", value=math.inf, low=math.nan, high=math.nan, samples=512),
        loss=math.nan,
    )
    losses = (math.nan, 9.1, 6.2, 5.0, math.inf, 4.4, 4.1)
    return replace(
        bearing_report(),
        task="causal-lm",
        dataset="wikitext-2",
        split="test",
        seeds=(0, 1, 2, 3, 4),
        dense=figures(7_000_000, 61.0, read(28.4)),
        final=figures(3_500_000, 63.0, read(41.7)),
        stages=(
            stage(
                0,
                "kv_group",
                units([0, 1], 4, 2, 3),
                5_000_000,
                before_recovery=broken,
                after_recovery=read(38.2),
                recovery=replace(recovered(7), losses=losses),
            ),
            stage(
                1,
                "channel",
                units([0, 1], 96, 48, 4),
                3_500_000,
                before_recovery=read(4210.0),
                after_recovery=read(41.7),
            ),
        ),
        dense_training=None,
        data={},
        provenance={},
    )


def huge_report() -> CompressionReport:
    """32 layers × 11,008 channels."""
    layers = units(list(range(32)), 11_008, 5_504, 9)
    return replace(bearing_report(), stages=(stage(0, "channel", layers, 200_000),))
