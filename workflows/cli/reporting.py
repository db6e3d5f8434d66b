"""``cascade report``: a finished run or score run, for a person or a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from workflows.console import Output
    from workflows.rundir import RunDir

SCORES, SIA = "score.json", "sia.json"


def report(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="The machine's view on stdout.")] = False,
    browse: Annotated[bool, typer.Option("--open", help="Open report.html in the browser.")] = False,
) -> None:
    """Render the report.html of a run, score run or SIA check anew and sum it up, or print it for a machine."""
    from workflows.console import Output

    output = Output(as_json=as_json)
    if (run / SCORES).is_file():
        _scores(run, output)
    elif (run / SIA).is_file():
        _sia(run, output)
    else:
        _run(run, output)
    if browse:
        typer.launch(str((run / "report.html").resolve()))


def _run(run: Path, output: Output) -> None:
    from workflows.rundir import open_run

    found = open_run(run)
    document = load_view(found)
    if output.as_json:
        output.document(document)
        return
    page = _render(found)
    output.text(headline(document))
    output.text(f"report: {page}")


def _scores(run: Path, output: Output) -> None:
    from workflows.cli.score import summary
    from workflows.report.render import write_page
    from workflows.report.score_page import render_scores
    from workflows.scoring.record import machine_view, read_records

    with output.working():
        found = read_records(run)
    if output.as_json:
        output.document(machine_view(found))
        return
    output.text(summary(found))
    output.text(f"report: {write_page(run / 'report.html', render_scores(found))}")


def _sia(run: Path, output: Output) -> None:
    from workflows.cli.sia import summary
    from workflows.report.render import write_page
    from workflows.report.sia_page import render_sia
    from workflows.sia.record import machine_view, read_record

    with output.working():
        found = read_record(run)
    if output.as_json:
        output.document(machine_view(found))
        return
    output.text(summary(found))
    output.text(f"report: {write_page(run / 'report.html', render_sia(found))}")


def _render(run: RunDir) -> Path:
    from workflows.report import read_machine_view, write_report
    from workflows.rundir import read_json

    document = read_json(run.report)
    record, examples = read_machine_view(document)
    return write_report(record, run.path, artifacts=document["artifacts"], examples=examples)[1]


def load_view(run: RunDir) -> dict[str, Any]:
    """The machine's view, with artifacts as paths that work from here. Raises CheckpointError."""
    from cascade_ops.errors import CheckpointError
    from cascade_ops.results import REPORT_SCHEMA
    from workflows.rundir import read_json

    if not run.report.is_file():
        raise CheckpointError(
            f"{run.path}: has no report yet, the run is unfinished. Finish it: cascade compress --resume {run.path}"
        )
    document: dict[str, Any] = read_json(run.report)
    if not isinstance(document, dict) or document.get("schema") != REPORT_SCHEMA:
        raise CheckpointError(
            f"{run.report}: expected a report of schema {REPORT_SCHEMA!r}, found {document.get('schema')!r}"
            if isinstance(document, dict)
            else f"{run.report}: not a report"
        )
    artifacts = document.get("artifacts", {})
    located = {name: str(run.path / path) if path else path for name, path in artifacts.items()}
    return {**document, "artifacts": located}


def headline(document: dict[str, Any]) -> str:
    """The result in three lines."""
    from workflows.report.format import factor

    compression, metric, latency = document["compression"], document["metric"], document["latency_ms"]
    params = document["params"]["backbone"]
    cuts = " → ".join(f"{stage['granularity']} −{stage['ratio']:.0%}" for stage in document["stages"])
    return (
        f"backbone {params['dense']:,} → {params['final']:,} parameters ({factor(compression['backbone'])}; all "
        f"parameters {factor(compression['total'])}) by {cuts}\n"
        f"{metric['name']} {_interval(metric, 'dense')} → {_interval(metric, 'final')} on {document['dataset']}, "
        f"split {document['split']}\n"
        f"latency {latency['dense']:.2f} → {latency['final']:.2f} ms for one sample, {document['seconds']:.0f} s in all"
    )


def _interval(metric: dict[str, Any], which: str) -> str:
    value, ends = metric[which], metric[f"{which}_ci"]
    if value is None:
        return "none"
    low, high = ("?" if end is None else f"{end:.4g}" for end in ends)
    return f"{value:.4g} [{low}, {high}]"
