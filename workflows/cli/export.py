"""``cascade export``: a compressed model for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cascade_ops.export import Exported

SCHEMA = "cascade.export/1"


def export(
    model: Annotated[Path, typer.Argument(help="Run directory or model folder.", metavar="RUN")],
    to: Annotated[str, typer.Option(help="Target, or several with commas between. See cascade ls targets.")],
    out: Annotated[Path | None, typer.Option(help="Folder. [default: RUN/export/TARGET]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the weights. [default: the target's first]")
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate", help="Measure the result on the run's test data, in its runtime."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The manifests as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and data.")] = False,
) -> None:
    """Write a model for another runtime: reloaded there and compared with plain PyTorch before it says ok.

    The folder holds a model card and export.json, the figures of the comparison.
    """
    from cascade_ops.errors import UsageError
    from workflows.console import Output
    from workflows.exporting import origin_of, run_export

    output = Output(as_json=as_json, quiet=quiet)
    targets = [name.strip() for name in to.split(",") if name.strip()]
    if not targets:
        raise UsageError("--to: expected a target, found none. cascade ls targets names them.")
    if out is not None and len(targets) > 1:
        raise UsageError("--out: is the folder of one target. Name one, or leave it out.")
    documents = []
    for target in targets:
        with output.working() as progress:
            origin = origin_of(model, precision=precision)
            folder = out or _beside(model, target, precision)
            exported, about = run_export(origin, target, folder, evaluate=evaluate, progress=progress)
        documents.append(_document(exported, about))
        if not as_json:
            output.text(summary(exported, about))
    if as_json:
        output.document({"schema": SCHEMA, "exports": documents})


def _beside(model: Path, target: str, precision: str | None) -> Path:
    parent = (
        model
        if (model / "config.yaml").is_file()
        else model.resolve().parent / f"{model.resolve().name}-export"
    )
    name = target if precision is None else f"{target}-{precision}"
    return (parent / "export" / name) if parent == model else parent / name


def _document(exported: Exported, about: dict[str, Any]) -> dict[str, Any]:
    from cascade_ops.serde import to_jsonable

    document: dict[str, Any] = to_jsonable(exported)
    return {**document, "folder": str(exported.folder), **about}


def summary(exported: Exported, about: dict[str, Any]) -> str:
    """What was written, how close it is, what it scores."""
    parity = exported.parity
    lines = [
        f"{exported.target} ({exported.precision}): {exported.folder}, {exported.size_bytes:,} bytes",
        f"  as plain PyTorch on {parity.probes} probes: total variation {parity.difference:.2g} (≤ "
        f"{parity.tolerance:g}), same answer on {parity.agreement:.1%}",
    ]
    if about["evaluation"] is not None:
        metric = about["evaluation"]["metric"]
        before = (about["run"]["metric"] or {}).get("final")
        lines.append(
            f"  {metric['name']} {before:.4g} → {metric['value']:.4g} on {metric['samples']:,} samples"
        )
    lines += [f"  note: {note}" for note in exported.notes]
    return "\n".join(lines)
