"""``cascade inspect`` and ``cascade eval``: what a model is made of, and how good it is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from cascade_ops.anatomy import ModelAnatomy

SHAPE = ("heads", "kv_heads", "head_dim", "channels", "params")
INSPECT_SCHEMA, EVAL_SCHEMA = "cascade.inspect/1", "cascade.eval/1"


def inspect(
    model: Annotated[
        str, typer.Argument(help="Run directory, model folder (a config alone will do) or hub name.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show a model's layers, heads and channels, its parameters by part, and whether structural SIA holds."""
    from cascade_ops.anatomy import anatomy_of
    from cascade_ops.sia import check_sia
    from workflows.console import Output
    from workflows.exporting import refused_by_target

    output = Output(as_json=as_json)
    with output.working():
        config = _config_of(model)
        anatomy = anatomy_of(config)
        targets = refused_by_target(config)
    document = _anatomy_document(model, anatomy, check_sia(anatomy).verdicts) | {"targets": targets}
    if as_json:
        output.document(document)
        return
    params = document["params"]
    output.text(
        f"{anatomy.family} ({anatomy.model_type}), hidden size {anatomy.hidden_size}\n"
        f"parameters: {params['total']:,} = backbone {params['backbone']:,} (attention {params['attention']:,}, "
        f"feed-forward {params['mlp']:,}, rest {params['norms_and_biases']:,}) + other {params['other']:,}\n"
    )
    output.table(("layer", *SHAPE), _alike_together(document["layers"]))
    output.text("")
    rows = [(v["granularity"], v["kappa"], v["pi"], v["holds"], v["reason"]) for v in document["sia"]]
    output.table(("unit", "κ", "π", "SIA", "why"), rows)
    output.text("")
    output.table(("export", "runs in", "expresses it", "why not"), [_target_row(row) for row in targets])


def _target_row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    reasons = row["reasons"]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return row["target"], row["title"], "yes" if row["expresses"] else "no", (reasons or [""])[0] + more


def _alike_together(layers: list[dict[str, Any]]) -> list[list[Any]]:
    """One row for each run of layers of one shape; they are numbered as in the dense model."""
    rows = []
    for shape, group in itertools.groupby(layers, key=lambda layer: [layer[column] for column in SHAPE]):
        sources = [layer["source"] for layer in group]
        unbroken = sources == list(range(sources[0], sources[-1] + 1))
        names = f"{sources[0]}–{sources[-1]}" if unbroken else ", ".join(map(str, sources))
        rows.append([str(sources[0]) if len(sources) == 1 else names, *shape])
    return rows


def _config_of(model: str) -> PreTrainedConfig:
    """Raises CheckpointError, UsageError."""
    from cascade_ops.checkpoint import read_config
    from workflows.hub import CONFIG_ONLY, locate
    from workflows.models import model_folder

    return read_config(locate(str(model_folder(Path(model))), files=CONFIG_ONLY))


def _anatomy_document(model: str, anatomy: ModelAnatomy, verdicts: Any) -> dict[str, Any]:
    from cascade_ops.serde import to_jsonable

    layers = anatomy.layers
    return {
        "schema": INSPECT_SCHEMA,
        "model": model,
        "family": anatomy.family,
        "model_type": anatomy.model_type,
        "hidden_size": anatomy.hidden_size,
        "gated": anatomy.gated,
        "params": {
            "total": anatomy.total_params,
            "backbone": anatomy.backbone_params,
            "attention": sum(x.heads * x.params_head + x.kv_heads * x.params_kv for x in layers),
            "mlp": sum(x.channels * x.params_channel for x in layers),
            "norms_and_biases": sum(x.params_fixed for x in layers),
            "other": anatomy.params_other,
        },
        "layers": [
            {
                "source": layer.source,
                "heads": layer.heads,
                "kv_heads": layer.kv_heads,
                "heads_per_kv": list(layer.heads_per_kv),
                "head_dim": layer.head_dim,
                "channels": layer.channels,
                "params": layer.params,
            }
            for layer in layers
        ],
        "sia": to_jsonable(list(verdicts)),
    }


def evaluate_model(
    model: Annotated[Path, typer.Argument(help="Run directory or model folder.")],
    data: Annotated[str | None, typer.Option(help="Another dataset.")] = None,
    data_path: Annotated[Path | None, typer.Option(help="Its folder, if not in a usual place.")] = None,
    split: Annotated[str | None, typer.Option(help="Another split.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure a saved model on the test side of its run's data, or of other data."""
    from cascade_ops.checkpoint import load_pruned
    from cascade_ops.evaluation import evaluate
    from cascade_ops.serde import to_jsonable
    from workflows.console import Output
    from workflows.models import check_classes, model_folder, run_config
    from workflows.prepare import prepare_data, with_data

    output = Output(as_json=as_json)
    with output.working():
        config = run_config(model)
        path = str(data_path) if data_path else None
        config = with_data(config, name=data, path=path, split=split)
        folder = model_folder(model)
        loaded = load_pruned(folder)
        prepared = prepare_data(config)
        check_classes(loaded.config, prepared.data.classes)
        task = prepared.data
        result = evaluate(loaded, task.test, task=task.task, classes=task.classes)
    about = prepared.description
    if as_json:
        place = {"dataset": about["name"], "source": about["source"], "split": about["split"]}
        output.document(
            {
                "schema": EVAL_SCHEMA,
                "model": str(folder),
                "task": task.task,
                **place,
                "evaluation": to_jsonable(result),
            }
        )
        return
    metric = result.metric
    output.text(
        f"{metric.name} {metric.value:.4g} [{metric.low:.4g}, {metric.high:.4g}] on {metric.samples:,} samples of "
        f"{about['name']}, split {about['split']}; loss {result.loss:.4g}"
    )
    if result.per_class:
        output.table(("class", "recall"), list(result.per_class.items()))
