"""``cascade ls``: runs, and everything that is chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

SCHEMA = "cascade.ls/1"
Rows = list[dict[str, Any]]


def ls(
    what: Annotated[
        str, typer.Argument(help="runs, scores, models, criteria, families, datasets or targets.")
    ] = "runs",
    root: Annotated[Path, typer.Option(help="Where runs are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List runs, compressed models, or what can be chosen by name."""
    from cascade_ops.errors import UnknownNameError
    from workflows.console import Output

    output = Output(as_json=as_json)
    if what not in LISTS:
        raise UnknownNameError("list", what, LISTS)
    with output.working():
        rows = LISTS[what](root)
    if as_json:
        output.document({"schema": SCHEMA, "what": what, "rows": rows})
    elif rows:
        output.table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    else:
        output.say(f"no {what} in {root}")


def _runs(root: Path) -> Rows:
    from cascade_ops.errors import CascadeError
    from workflows.cli.reporting import load_view
    from workflows.cli.status import columns
    from workflows.rundir import CONFIG, RunDir

    rows: Rows = []
    for path in sorted(root.glob(f"*/{CONFIG}")):
        run = RunDir(path=path.parent)
        row: dict[str, Any] = {"run": str(run.path), **columns(run.path, complete=run.complete)}
        row |= dict.fromkeys(("dataset", "split", "seed", "compression", "metric", "dense", "final"))
        if run.complete:
            try:
                view = load_view(run)
            except CascadeError:
                row["state"] = "damaged"
            else:
                row |= {key: view[key] for key in ("dataset", "split")}
                row |= {"seed": view["seeds"][0], "compression": view["compression"]["backbone"]}
                row |= {"metric": view["metric"]["name"]}
                row |= {key: view["metric"][key] for key in ("dense", "final")}
        rows.append(row)
    return rows


def _scores(root: Path) -> Rows:
    import json

    rows: Rows = []
    for path in sorted(root.glob("*/score.json")):
        row: dict[str, Any] = {"run": str(path.parent)}
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            row |= {key: document[key] for key in ("model", "task", "samples", "tokens", "seconds")}
            row |= {"criteria": ", ".join(document["criteria"]), "shards": len(document["shards"])}
        except (ValueError, KeyError, TypeError):
            row |= dict.fromkeys(("model", "task", "samples", "tokens", "seconds", "criteria", "shards"))
        rows.append(row)
    return rows


def _models(root: Path) -> Rows:
    from workflows.cli.reporting import load_view
    from workflows.rundir import CONFIG, RunDir

    rows: Rows = []
    for path in sorted(root.glob(f"*/{CONFIG}")):
        run = RunDir(path=path.parent)
        if run.complete:
            params = load_view(run)["params"]
            rows.append(
                {
                    "model": str(run.model),
                    "backbone": params["backbone"]["final"],
                    "total": params["total"]["final"],
                }
            )
    return rows


def _criteria(root: Path) -> Rows:
    from cascade_ops.criteria import CRITERIA

    return [
        {"criterion": c.name, "scores": ", ".join(sorted(c.granularities)), "source": c.reference}
        for c in CRITERIA.values()
    ]


def _families(root: Path) -> Rows:
    from cascade_ops.families import FAMILIES

    return [
        {
            "model_type": name,
            "family": FAMILIES[name].name,
            "gated": FAMILIES[name].gated,
            "unsupported": ", ".join(dict.fromkeys(one.granularity for one in FAMILIES[name].unsupported)),
        }
        for name in FAMILIES
    ]


def _datasets(root: Path) -> Rows:
    from cascade_ops.data import available

    return [
        {"dataset": row.name, "title": row.title, "folder": row.folder or None, "complete": row.complete}
        for row in available()
    ]


def _targets(root: Path) -> Rows:
    from importlib.util import find_spec

    from cascade_ops.export import TARGETS

    return [
        {
            "target": name,
            "runtime": TARGETS[name].title,
            "models": ", ".join(TARGETS[name].kinds),
            "precisions": ", ".join(TARGETS[name].precisions),
            "installed": all(find_spec(package) is not None for package in TARGETS[name].packages),
        }
        for name in TARGETS
    ]


LISTS: dict[str, Callable[[Path], Rows]] = {
    "runs": _runs,
    "scores": _scores,
    "models": _models,
    "criteria": _criteria,
    "families": _families,
    "datasets": _datasets,
    "targets": _targets,
}
