"""``cascade bench``: dense and compressed side by side, alone and behind a server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.cli.failures import fail

if TYPE_CHECKING:
    from cascade_ops.loadtest.compare import Comparison
    from cascade_ops.loadtest.results import Bench
    from serve.bench.job import BenchOptions
    from serve.bench.workload import Workload
    from workflows.console import Output

NONE = "none"


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="[NAME=]RUN: run directories or model folders.", metavar="[RUN]…"),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server. [default: one started here, on the first engine]")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Closed loop: users at a time, or none.")] = "1,8,32",
    rates: Annotated[
        str | None,
        typer.Option(
            help="Open loop: requests per second, or none. [default: 0.5, 0.8 and 1.2 of each model's capacity]"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of each load of each model in each round.")] = 10.0,
    requests: Annotated[int, typer.Option(help="At most, of each load of each model in each round.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Models take turns so many times.")] = 3,
    objective_ms: Annotated[float, typer.Option(help="Answers within it are goodput.")] = 50.0,
    engines: Annotated[
        str | None, typer.Option(help="eager, compile, onnx, int8. [default: eager, and onnx where it is]")
    ] = None,
    offline_only: Annotated[bool, typer.Option("--offline-only", help="Models alone, no server.")] = False,
    online_only: Annotated[bool, typer.Option("--online-only", help="The server alone.")] = False,
    detail: Annotated[str, typer.Option(help="What answers hold: none, lines.")] = NONE,
    data: Annotated[
        str, typer.Option(help="Windows sent: simulated, or run, the test side of the run's own data.")
    ] = "simulated",
    threads: Annotated[int, typer.Option(help="Of each process, and of the own server.")] = 1,
    device: Annotated[str, typer.Option(help="Of the models alone: cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 0,
    token_env: Annotated[str | None, typer.Option(help="Environment variable with the token.")] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Load a server on another machine.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two saved benchmarks instead: before, after.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. [default: runs/bench-<time>]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Measure models side by side, interleaved: latency under load without coordinated omission, memory, size.

    Writes bench.json, requests.parquet and bench.html.
    """
    from workflows.console import Output

    output = Output(as_json=as_json, quiet=quiet)
    if compare is not None:
        _compare(*compare, output)
        return
    from serve.bench.job import BenchOptions, check, run_bench
    from serve.bench.saved import refuse_existing, save
    from workflows.provenance import provenance
    from workflows.report.bench_page import render_bench

    options = check(
        BenchOptions(
            models=tuple(models or ()),
            url=url,
            concurrency=tuple(int(one) for one in _numbers("concurrency", concurrency, whole=True)),
            rates=None if rates is None else _numbers("rates", rates),
            seconds=seconds,
            requests=requests,
            rounds=rounds,
            objective_ms=objective_ms,
            engines=_names(engines) if engines is not None else _default_engines(),
            offline=not online_only,
            online=not offline_only,
            detail=_one_of("detail", detail, (NONE, "lines")),
            threads=threads,
            device=_one_of("device", device, ("cpu", "cuda")),
            token_env=token_env,
            allow_remote=allow_remote,
            seed=seed,
        )
    )
    path = out or Path("runs") / time.strftime("bench-%Y%m%d-%H%M%S")
    refuse_existing(path)
    try:
        with output.working() as progress:
            windows = _windows(options) if _one_of("data", data, ("simulated", "run")) == "run" else None
            origin = provenance(seed=seed, threads=threads, data_fingerprint="")
            result, sent = run_bench(
                options, provenance=origin, windows=windows, progress=progress, told=output.say
            )
            save(result, sent, render_bench(result), path)
    except KeyboardInterrupt:
        fail("interrupted; nothing was written, the same command starts again", 1)
    _tell(result, output, path)


def _numbers(flag: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """``1,8,32``; nothing for ``none``. Raises UsageError."""
    from cascade_ops.errors import UsageError

    try:
        values = tuple(float(one) for one in _names(text))
        if whole and any(value != int(value) for value in values):
            raise ValueError
    except (ValueError, OverflowError):
        kind = "whole numbers" if whole else "numbers"
        raise UsageError(f"--{flag}: expected {kind} with commas between, or none, found {text!r}") from None
    return tuple(dict.fromkeys(values))


def _names(text: str) -> tuple[str, ...]:
    return () if text.strip() == NONE else tuple(one.strip() for one in text.split(",") if one.strip())


def _one_of(flag: str, given: str, known: tuple[str, ...]) -> str:
    from cascade_ops.errors import UnknownNameError

    if given not in known:
        raise UnknownNameError(f"--{flag}", given, known)
    return given


def _default_engines() -> tuple[str, ...]:
    from importlib.util import find_spec

    able = all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))
    return ("eager", "onnx") if able else ("eager",)


def _windows(options: BenchOptions) -> Workload:
    """The test side of the first run's data. Raises UsageError where it is not a classifier's."""
    from cascade_ops.errors import UsageError
    from serve.bench.workload import WINDOWS, Workload
    from serve.config import model_of
    from workflows.models import run_config
    from workflows.prepare import prepare_data

    if not options.models:
        raise UsageError("--data run: needs a run, as in `cascade bench runs/demo --data run`")
    config = run_config(Path(model_of(options.models[0])["path"]))
    prepared = prepare_data(config)
    signal = prepared.data.test.get("signal")
    if signal is None:
        raise UsageError("--data run: only classifiers of signals have windows. Use --data simulated.")
    every = max(1, len(signal) // WINDOWS)
    about = prepared.description
    return Workload(
        source=f"{about['name']}, test side of split {about['split']}",
        windows=signal[::every][:WINDOWS].numpy(),
        rate_hz=float(about["rate_hz"]),
        prepared=True,
    )


def _compare(before: Path, after: Path, output: Output) -> None:
    from cascade_ops.loadtest.compare import compare
    from cascade_ops.serde import to_jsonable
    from serve.bench.saved import load

    found = compare(load(before), load(after))
    if output.as_json:
        output.document(to_jsonable(found))
        return
    _tell_comparison(found, output)


def _tell_comparison(found: Comparison, output: Output) -> None:
    from workflows.report.bench_words import in_words, interval_of, name_of, value_of

    rows: list[tuple[Any, ...]] = []
    for one in found.changes:
        words = "" if one.ratio is None else in_words(one.ratio)
        verdict = {None: "", True: "better", False: "worse"}[one.better]
        interval = "" if one.ratio is None else interval_of(one.ratio)
        rows.append(
            (
                one.where,
                one.variant,
                name_of(one.figure),
                value_of(one.figure, one.before),
                value_of(one.figure, one.after),
                interval,
                words,
                verdict,
            )
        )
    columns = ("where", "model", "figure", "before", "after", "95 % of ratio", "", "")
    output.table(columns, rows)
    for two in found.differences:
        output.say(f"differs: {two.what}: {two.before} → {two.after}")
    for side, names in (("before", found.only_before), ("after", found.only_after)):
        if names:
            output.say(f"only {side}: {len(names)} figures, such as {names[0]}")


def _tell(result: Bench, output: Output, path: Path) -> None:
    from cascade_ops.serde import to_jsonable

    if output.as_json:
        output.document(to_jsonable(result))
        return
    if output.quiet:
        return
    from workflows.report.bench_table import loads_table, processes_table, ratios_table

    for title, (columns, rows) in (
        ("under load", loads_table(result)),
        ("one process", processes_table(result)),
        ("ratios", ratios_table(result)),
    ):
        if rows:
            output.table(columns, rows, title=title)
            output.text("")
    for note in result.notes:
        output.say(f"note: {note}")
    output.text(f"report: {path / 'bench.html'}")
