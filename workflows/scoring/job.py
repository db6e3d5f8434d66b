"""``cascade score`` as a function: a model by name, calibration data, a score run on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade_ops.batches import Batch, length_of, sequential, subset
from cascade_ops.criteria import CRITERIA
from cascade_ops.data.readers.base import sha256_of
from cascade_ops.errors import DataError, UsageError
from cascade_ops.files import written_whole
from cascade_ops.models.classifier import SignalClassifierConfig
from cascade_ops.scoring import Scorer, Scores
from cascade_ops.shards import Layout, layout_of
from cascade_ops.tasks import token_sequences
from cascade_ops.tokenizers import tokenizer_in
from workflows.config import ScoringConfig
from workflows.hub import locate
from workflows.models import check_classes, model_folder, run_config
from workflows.prepare import prepare_data, with_data
from workflows.provenance import provenance
from workflows.report.score_page import render_scores
from workflows.rundir import refuse_existing
from workflows.scoring.driver import (
    Request,
    ShardedScores,
    Watch,
    make_request,
    positions_of,
    score_here,
    unwatched,
)
from workflows.scoring.record import PAGE, ScoreReport, scored_units, write_records
from workflows.scoring.sharded import score_sharded
from workflows.scoring.sizing import Wish

RANDOM = "random"
"""Calibration tokens drawn uniformly: for measuring time and memory on models that have no tokenizer."""
MICRO_BATCH = 256
"""Positions of a micro-batch by default: nearly full speed, little memory, and enough of them to keep workers busy."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What ``cascade score`` was asked for; None: as the model or its run has it.

    Attributes:
        data: a dataset's name, a text file, or ``random``.
        samples, length: calibration samples, and tokens of each (texts).
        batch: samples of a micro-batch.
        shards, workers, threads: division of the work; no workers: this process alone.
        address: of a Ray cluster; None starts one here.
    """

    data: str | None = None
    data_path: str | None = None
    split: str | None = None
    samples: int = 128
    length: int = 128
    batch: int | None = None
    criteria: tuple[str, ...] = ("taylor",)
    shards: int | None = None
    workers: int | None = None
    threads: int | None = None
    address: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch", "shards", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name}: must be ≥ 1, got {value}")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers: must be ≥ 0 (0: this process alone), got {self.workers}")
        if self.dtype not in ("auto", *DTYPES):
            raise UsageError(f"--dtype: must be auto, {', '.join(DTYPES)}; got {self.dtype!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device: must be auto, cpu or cuda; got {self.device!r}")
        if not self.criteria:
            raise UsageError("--criteria: name at least one; cascade ls criteria lists them")
        for name in self.criteria:
            CRITERIA[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Samples to estimate importance on, and what the report says about them."""

    task: str
    batch: Mapping[str, Tensor]
    description: dict[str, Any]
    fingerprint: str


def run_scoring(model: str, options: ScoreOptions, out: Path, *, watch: Watch = unwatched) -> ScoreReport:
    """Score ``model`` and write the score run ``out``, whole or not at all.

    Raises:
        CascadeError: see the messages; nothing was written.
    """
    refuse_existing(out)
    folder = locate(str(model_folder(Path(model)))).absolute()
    layout = layout_of(folder)
    calibration = calibration_for(model, folder, layout, options)
    request, wish = _request(layout, calibration, options)
    with written_whole(out) as scratch:  # before the work: a place that cannot be written is found out now
        if options.workers == 0:
            found = score_here(request, shards=options.shards or 1, watch=watch)
        else:
            found = score_sharded(request, wish, address=options.address, watch=watch)
        report = _report(model, request, calibration, found)
        write_records(report, scratch)
        (scratch / PAGE).write_text(render_scores(report), encoding="utf-8")
    return report


def calibration_for(model: str, folder: Path, layout: Layout, options: ScoreOptions) -> Calibration:
    """The run's own calibration data, or what was asked for.

    Raises:
        DataError, UsageError: there are none that fit the model.
    """
    if layout.config.model_type == SignalClassifierConfig.model_type:
        other = {"name": options.data, "path": options.data_path, "split": options.split}
        return _from_run(model, layout, options, **other)
    if options.data == RANDOM:
        return _random_tokens(layout, options)
    if options.data is not None:
        return _text(Path(options.data), folder, options)
    if (Path(model) / "config.yaml").is_file():
        return _from_run(model, layout, options)
    raise UsageError(
        f"{model}: give calibration data: --data FILE (a text) or --data {RANDOM} (uniform tokens, for measuring)"
    )


def _from_run(model: str, layout: Layout, options: ScoreOptions, **other: str | None) -> Calibration:
    config = run_config(Path(model))
    if any(other.values()):
        config = with_data(config, **{"name": None, "path": None, "split": None, **other})
    prepared = prepare_data(config)
    check_classes(layout.config, prepared.data.classes)
    batch = subset(prepared.data.train, options.samples, options.seed)
    return Calibration(
        task=config.task, batch=batch, description=prepared.description, fingerprint=prepared.fingerprint
    )


def _text(path: Path, folder: Path, options: ScoreOptions) -> Calibration:
    ids = token_sequences(path, tokenizer_in(folder), options.length)
    description = {
        "name": path.stem,
        "source": "recorded",
        "file": path.name,
        "length": options.length,
        "sequences": len(ids),
    }
    batch = subset({"input_ids": ids}, options.samples, options.seed)
    return Calibration(task="lm", batch=batch, description=description, fingerprint=sha256_of(path))


def _random_tokens(layout: Layout, options: ScoreOptions) -> Calibration:
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.samples, options.length)
    ids = torch.randint(0, int(layout.config.vocab_size), shape, generator=generator)
    note = "uniformly random tokens: scores on them say nothing about a trained model"
    description = {"name": RANDOM, "source": "drawn", "length": options.length, "notes": [note]}
    return Calibration(
        task="lm", batch={"input_ids": ids}, description=description, fingerprint=f"random-{options.seed}"
    )


def _request(layout: Layout, calibration: Calibration, options: ScoreOptions) -> tuple[Request, Wish]:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    alone = options.workers == 0
    if device == "cuda" and alone and not torch.cuda.is_available():
        raise UsageError("--device cuda was asked for, but torch sees no CUDA device; use auto or cpu")
    each = positions_of(calibration.batch, layout)
    size = options.batch or max(1, MICRO_BATCH // max(1, each))
    if length_of(calibration.batch) == 0:
        raise DataError("scoring needs calibration data, got no sample")
    request = make_request(
        layout,
        list(sequential(calibration.batch, size)),
        options.criteria,
        dtype=DTYPES.get(options.dtype),
        device=device,
        threads=options.threads or torch.get_num_threads(),
        seed=options.seed,
    )
    wish = Wish(
        shards=options.shards, workers=options.workers or None, threads=options.threads, gpu=device == "cuda"
    )
    return request, wish


def cluster_scorer(config: ScoringConfig, folder: Path, *, device: str) -> Scorer:
    """``cascade_ops.score`` for the model in ``folder``, carried out by workers that read it from there."""

    def scorer(model: nn.Module, batches: Iterable[Batch], criteria: Sequence[str], *, seed: int) -> Scores:
        request = make_request(
            layout_of(folder.absolute()),
            [{name: tensor.cpu() for name, tensor in batch.items()} for batch in batches],
            criteria,
            device=device,
            threads=config.threads,
            seed=seed,
        )
        wish = Wish(
            shards=config.shards, workers=config.workers, threads=config.threads, gpu=device == "cuda"
        )
        return score_sharded(request, wish, address=config.address).scores

    return scorer


def _report(model: str, request: Request, calibration: Calibration, found: ShardedScores) -> ScoreReport:
    anatomy, orders = request.layout.anatomy, request.orders
    return ScoreReport(
        model=model,
        family=anatomy.family,
        model_type=anatomy.model_type,
        params=anatomy.total_params,
        heads_per_kv=tuple(layer.heads_per_kv for layer in anatomy.layers),
        task=calibration.task,
        samples=found.samples,
        tokens=found.tokens,
        length=positions_of(calibration.batch, request.layout),
        criteria=orders.criteria,
        scores=scored_units(found.scores, anatomy),
        shards=found.shards,
        workers=found.workers,
        threads=found.threads,
        dtype=str(orders.dtype).removeprefix("torch."),
        device=orders.device,
        seconds=found.seconds,
        tokens_per_second=found.tokens / found.seconds,
        object_store_bytes=found.object_store_bytes,
        data=calibration.description,
        provenance=provenance(
            seed=orders.seed, threads=found.threads, data_fingerprint=calibration.fingerprint
        ),
    )
