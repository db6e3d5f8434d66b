"""``cascade serve``: compressed models behind an HTTP interface, beside the dense one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="[NAME=]RUN: run directories or model folders.", metavar="RUN…")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="dense: offer the model that the run started from, too; none. [default: dense]"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; options here override it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="batch.size=64, limits.queued=128, replicas.max=4, … Repeatable."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="eager, compile, onnx or int8. [default: eager]")] = None,
    host: Annotated[
        str | None, typer.Option(help="Where to listen. [default: 127.0.0.1, this machine only]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one. [default: 8000]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Processes that answer. [default: 1]")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each replica. [default: 1]")] = None,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the bearer token to ask for.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster. [default: one started here]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The address and the models as JSON, once ready.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Serve compressed models and the dense one side by side: a page, and an HTTP interface with OpenAPI."""
    from serve.config import load_config
    from serve.launch import Server
    from serve.variants import variants_of
    from workflows.console import Output

    output = Output(as_json=as_json, quiet=quiet)
    given: dict[str, Any] = {
        "baseline": baseline,
        "engine": engine,
        "host": host,
        "port": port,
        "threads": threads,
        "token_env": token_env,
        "replicas": None if replicas is None else {"min": replicas, "max": replicas},
    }
    checked = load_config(config, models or (), settings or (), **given)
    offered = variants_of(checked)
    with output.working() as progress:
        server = Server(checked, address=address, progress=progress)
        server.__enter__()
    ended = _ended()  # Ray sets handlers of its own when it starts
    try:
        described = [
            {"name": v.name, "title": v.title, "engine": v.engine, "size_bytes": v.size_bytes}
            for v in offered.values()
        ]
        if as_json:
            output.document({"schema": "cascade.serve/1", "url": server.url, "models": described})
        else:
            for variant in offered.values():
                output.say(
                    f"  {variant.name}: {variant.title}, {variant.size_bytes / 1e6:.3g} MB, {variant.engine}"
                )
            output.text(server.url)
        ended.wait()
        output.say("finishing what is being answered …")
    finally:
        server.stop()


def _ended() -> threading.Event:
    """Set by Ctrl-C or SIGTERM: requests in hand are answered before it ends."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended
