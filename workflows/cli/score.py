"""``cascade score``: importance of every layer, head and channel, on as many workers as there are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from workflows.scoring.record import ScoreReport

ALL = "all"


def score(
    model: Annotated[str, typer.Argument(help="Run directory, model folder or hub name.")],
    data: Annotated[
        str | None, typer.Option(help="Dataset, text file, or random. [default: the run's own]")
    ] = None,
    data_path: Annotated[
        str | None, typer.Option(help="The dataset's folder, if not in a usual place.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="time, load:3, speed:1200 or bearing:….")] = None,
    criteria: Annotated[str, typer.Option(help="Names with commas between them, or all.")] = ALL,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 128,
    length: Annotated[int, typer.Option(help="Tokens of each (texts).")] = 128,
    batch: Annotated[
        int | None, typer.Option(help="Samples of a micro-batch. [default: ≈ 256 tokens]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Parts of the model. [default: the fewest that fit]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray actors; 0: this process alone. [default: what the cores allow]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of each worker. [default: an eighth of the cores]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda (a worker for each GPU).")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the choice of samples, and of the random criterion.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New folder. [default: runs/score-<time>]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything but the scores as JSON on stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Score all layers, heads, KV groups and channels of a model in one sweep; no worker need hold the whole model.

    Writes scores.parquet, score.json and report.html.
    """
    from cascade_ops.criteria import CRITERIA
    from workflows.console import Output
    from workflows.scoring.job import ScoreOptions, run_scoring
    from workflows.scoring.record import machine_view
    from workflows.scoring.view import watching

    output = Output(as_json=as_json, quiet=quiet)
    names = tuple(CRITERIA) if criteria == ALL else tuple(n.strip() for n in criteria.split(",") if n.strip())
    options = ScoreOptions(
        data=data,
        data_path=data_path,
        split=split,
        samples=samples,
        length=length,
        batch=batch,
        criteria=names,
        shards=shards,
        workers=workers,
        threads=threads,
        address=address,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    path = out or Path("runs") / time.strftime("score-%Y%m%d-%H%M%S")
    try:
        with watching(output) as watch:
            report = run_scoring(model, options, path, watch=watch)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written, the same command starts again", 1)
    if as_json:
        output.document(machine_view(report))
    elif not quiet:
        output.text(summary(report))
        output.text(f"scores: {path / 'scores.parquet'}\nreport: {path / 'report.html'}")


def summary(report: ScoreReport) -> str:
    """A score run in three lines."""
    kinds = list(dict.fromkeys(one.granularity for one in report.scores))
    peak = max((worker.peak_bytes for worker in report.workers), default=0)
    lost = sum(worker.lost for worker in report.workers)
    return (
        f"{report.model}: {len(report.heads_per_kv)} layers, {report.params:,} parameters ({report.dtype}); scored "
        f"{', '.join(kinds)} by {', '.join(report.criteria)}\n"
        f"{report.samples:,} samples, {report.tokens:,} tokens of {report.data.get('name', 'data')} in "
        f"{report.seconds:.1f} s ({report.tokens_per_second:,.0f} tokens/s)\n"
        f"{len(report.shards)} shards on {len(report.workers) - lost} workers × {report.threads} threads"
        f"{f' ({lost} lost and replaced)' if lost else ''}, largest worker {peak / 2**30:.2f} GiB"
    )
