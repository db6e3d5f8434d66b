"""``cascade compress``: the main job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from workflows.config import JobConfig
    from workflows.console import Output
    from workflows.rundir import RunDir


def compress(
    config: Annotated[Path | None, typer.Argument(help="YAML file. [default: the demonstration]")] = None,
    target: Annotated[str | None, typer.Option(help="Backbone compression, such as 13.8x.")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset; cascade ls datasets.")] = None,
    data_path: Annotated[Path | None, typer.Option(help="Its folder, if not in a usual place.")] = None,
    split: Annotated[str | None, typer.Option(help="time, load:3, speed:1200 or bearing:….")] = None,
    model: Annotated[str | None, typer.Option(help="Pretrained weights: a folder or hub name.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory, new or to be continued. [default: runs/<time>]"),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder or URL where finished steps are kept and looked for.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any value: schedule.stages.0.ratio=0.5. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Train or load a dense model, compress it stage by stage, and write a run directory with a report."""
    from workflows.console import Output

    output = Output(as_json=as_json, quiet=quiet)
    flags = {
        "schedule.target": target,
        "data.name": data,
        "data.path": data_path,
        "data.split": split,
        "model.path": model,
        "seed": seed,
        "store": store,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    if resume is not None and out is not None:
        fail("--resume continues the run where it is: leave out --out", 2)
    request: JobConfig | None
    if resume is None:
        request = _request(_base(config), given, settings or [])
        path = out or Path(request.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    else:
        path = resume
        changes = config is not None or given or settings
        request = _request(_base(config, resume), given, settings or []) if changes else None
    _run(path, request, is_new=resume is None, output=output)


def _base(config: Path | None, resume: Path | None = None) -> dict[str, Any]:
    from workflows.config import default_document, read_document
    from workflows.rundir import CONFIG, open_run

    if config is not None:
        return read_document(config)
    return default_document() if resume is None else read_document(open_run(resume).path / CONFIG)


def _request(document: dict[str, Any], flags: dict[str, Any], settings: list[str]) -> JobConfig:
    """File, then flags, then ``--set``. A flag replaces what it excludes: a target the stages, a path the
    config. Raises ConfigError."""
    from workflows.config import override, resolve

    replaced = {"schedule.target": ("schedule", "stages"), "model.path": ("model", "config")}
    document = {key: dict(value) if isinstance(value, dict) else value for key, value in document.items()}
    for flag, value in flags.items():
        section, _, key = flag.rpartition(".")
        holder = document.setdefault(section, {}) if section else document
        if isinstance(holder, dict):
            holder[key] = str(value) if isinstance(value, Path) else value
        if flag in replaced and isinstance(document.get(section), dict):
            document[section].pop(replaced[flag][1], None)
    return resolve(override(document, settings))


def _run(path: Path, request: JobConfig | None, *, is_new: bool, output: Output) -> None:
    from cascade_ops.errors import UsageError
    from workflows.rundir import CONFIG

    hint = f"cascade compress --resume {path}"
    try:
        with output.working() as progress:
            run = _carry_out(path, request, is_new, progress, output)
    except KeyboardInterrupt:
        # The first Ctrl-C may have come before there was anything to resume.
        fail(f"interrupted; resume with: {hint}" if (path / CONFIG).is_file() else "interrupted", 1)
    except UsageError:
        raise
    except Exception:
        if (path / CONFIG).is_file():
            output.say(f"resume with: {hint}")
        raise
    _show(run, output)


def _carry_out(path: Path, request: JobConfig | None, is_new: bool, progress: Any, output: Output) -> RunDir:
    from workflows import job

    if is_new:
        assert request is not None  # resume alone goes without
        return job.start(request, path, progress=progress, say=output.say)
    return job.resume(path, requested=request, progress=progress, say=output.say)


def _show(run: RunDir, output: Output) -> None:
    from workflows.cli.reporting import headline, load_view

    document = load_view(run)
    if output.as_json:
        output.document(document)
    elif not output.quiet:
        output.text(headline(document))
        output.text(f"model:  {run.model}\nreport: {run.path / 'report.html'}")
