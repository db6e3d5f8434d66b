"""``cascade search``: which schedule is best?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from workflows.console import Output
    from workflows.search.job import Request
    from workflows.search.record import SearchRecord


def search(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML file, with a search section if wanted. [default: the demonstration]"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Backbone compression that every trial lands on, such as 13.8x.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Schedules in all. [default: 40]")] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="accuracy, loss, perplexity, params, memory_mb, latency: one, or several with commas."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="latency=0.5: a figure's largest value. Repeatable.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="auto, tpe, nsga2 or random.")] = None,
    ignore_sia: Annotated[
        bool, typer.Option("--ignore-sia", help="Rounds may remove more than the SIA check allows.")
    ] = False,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(help="An earlier search whose best schedules are tried first. Repeatable."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Trials at a time. [default: what the cores allow]")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler; the runs' own is --set seed=.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder, new or to be continued. [default: runs/search-<time>]")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this search.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any value: search.rounds=2, train.steps=300. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Search orders, ratios, criteria and recovery splits for the best schedule, within what SIA allows.

    Writes a report, every trial, and the winner as a schedule.yaml that cascade compress runs.
    """
    from workflows.console import Output
    from workflows.search.job import reread

    output = Output(as_json=as_json, quiet=quiet)
    flags = {
        "trials": trials,
        "objectives": None if objective is None else [name.strip() for name in objective.split(",")],
        "limits": None if limit is None else dict(_limit(one) for one in limit),
        "sampler": sampler,
        "ignore_sia": ignore_sia or None,
        "warm_start": None if warm_start is None else [str(path) for path in warm_start],
        "slots": slots,
        "seed": seed,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if resume is not None:
        free = {"trials", "slots"}
        if out is not None or config is not None or target is not None or settings or set(given) - free:
            fail(
                "--resume continues the search as it was; only --trials, --slots and --address may change", 2
            )
        request, path = reread(resume, [f"{name}={value}" for name, value in given.items()]), resume
    else:
        request = _request(config, target, given, settings or [])
        path = out or Path("runs") / time.strftime("search-%Y%m%d-%H%M%S")
    _run(request, path, address, output)


def _limit(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        fail(f"--limit {text}: expected figure=value, such as latency=0.5" + ("" if equals else " (no =)"), 2)
        raise


def _request(config: Path | None, target: str | None, given: dict[str, Any], settings: list[str]) -> Request:
    """File, then flags, then ``--set``."""
    from workflows.config import default_document, read_document
    from workflows.search.job import request_of

    document = default_document() if config is None else read_document(config)
    if target is not None:
        schedule = dict(document.get("schedule") or {})
        schedule.pop("stages", None)
        document = {**document, "schedule": {**schedule, "target": target}}
    section = document.get("search")
    if given and (section is None or isinstance(section, dict)):
        document = {**document, "search": {**(section or {}), **given}}
    return request_of(document, settings)


def _run(request: Request, path: Path, address: str | None, output: Output) -> None:
    from cascade_ops.errors import UsageError
    from workflows.search.job import CONFIG, run_search

    hint = f"cascade search --resume {path}"
    try:
        with output.working() as progress:
            record = run_search(request, path, address=address, progress=progress, say=output.say)
    except KeyboardInterrupt:
        fail(f"interrupted; resume with: {hint}" if (path / CONFIG).is_file() else "interrupted", 1)
    except UsageError:
        raise
    except Exception:
        if (path / CONFIG).is_file():
            output.say(f"resume with: {hint}")
        raise
    _tell(record, path, output)


def _tell(record: SearchRecord, path: Path, output: Output) -> None:
    from workflows.search.record import PAGE, WINNER, machine_view

    if output.as_json:
        output.document(machine_view(record))
    elif not output.quiet:
        output.text(summary(record))
        if record.winner is not None:
            output.text(f"winner: cascade compress {path / WINNER}")
        output.text(f"report: {path / PAGE}")
    if record.winner is None:
        fail(f"no trial was complete and within every limit; {path / PAGE} says why", 1)


def summary(record: SearchRecord) -> str:
    """What came out, in a few lines."""
    states = [trial.state for trial in record.trials]
    lines = [
        f"{len(states)} trials: {states.count('complete')} complete, {states.count('pruned')} stopped early, "
        f"{states.count('failed')} failed"
    ]
    if record.requested:
        shared = 1 - record.computed / record.requested
        lines.append(
            f"{record.requested} stages, {shared:.0%} of them shared; Tune's overhead {record.overhead:.1%}"
        )
    for name, outcome in (("dense", record.dense), ("own schedule", record.reference)):
        if outcome:
            lines.append(f"{name}: {_figures(outcome)}")
    if record.winner is not None:
        best = record.trial(record.winner)
        lines.append(f"trial {best.number}: {_figures(best.outcome)}")
        lines.append(
            "  " + " → ".join(f"{s.granularity} −{s.ratio:.0%} ({s.criterion})" for s in best.stages)
        )
    return "\n".join(lines)


def _figures(outcome: dict[str, float]) -> str:
    shown = [(name, value) for name, value in outcome.items() if name not in ("total_params", "params")]
    return ", ".join(f"{name} {value:.4g}" for name, value in shown)
