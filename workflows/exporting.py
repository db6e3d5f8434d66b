"""``cascade export``: a run's model in another runtime's format, with its figures, its origin and a card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig

from cascade_ops.anatomy import anatomy_of
from cascade_ops.data.resample import COMMON_RATE_HZ
from cascade_ops.evaluation import evaluate_answers
from cascade_ops.export import TARGETS, Exported, Job, Source, export, refusals, write_manifest
from cascade_ops.progress import Progress, silent
from cascade_ops.results import Evaluation
from cascade_ops.serde import to_jsonable
from cascade_ops.tokenizers import has_tokenizer, tokenizer_in
from workflows.hub import TOKENIZER, locate
from workflows.models import model_folder
from workflows.prepare import Prepared, prepare_data
from workflows.provenance import provenance
from workflows.report.card import render_card
from workflows.rundir import CONFIG, RunDir, read_json

CARD = "README.md"
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What is exported, and what its run says about it.

    ``run`` is None for a folder outside any run; ``report`` is then empty.
    """

    path: Path
    source: Source
    run: RunDir | None
    report: Mapping[str, Any]


def origin_of(path: Path, *, precision: str | None = None) -> Origin:
    """Where the model, its tokenizer and its figures are. Raises CheckpointError, UsageError."""
    folder = model_folder(path)
    run = RunDir(path=path) if (path / CONFIG).is_file() else None
    report = read_json(run.report) if run is not None and run.report.is_file() else {}
    rate = (report.get("data") or {}).get("rate_hz")
    return Origin(
        path=path,
        source=Source(
            folder=folder,
            tokenizer=_tokenizer(folder, run),
            precision=precision,
            rate_hz=float(rate or COMMON_RATE_HZ),
        ),
        run=run,
        report=report,
    )


def run_export(
    origin: Origin, target: str, out: Path, *, evaluate: bool = True, progress: Progress = silent
) -> tuple[Exported, dict[str, Any]]:
    """Export, measure the result in its own runtime on the run's test data, and describe it.

    Args:
        evaluate: whether to measure; without a run there is nothing to measure on.

    Returns:
        the export and the manifest's further entries.

    Raises:
        CascadeError: as ``export``; or the run's data is no longer there (then nothing is written).
    """
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    wanted = origin.run is not None and evaluate
    prepared = prepare_data(origin.run.config()) if wanted and origin.run is not None else None

    def finish(folder: Path, exported: Exported, job: Job) -> None:
        measured = None if prepared is None else _measured(folder, target, prepared, progress)
        found.update(_about(origin, exported, job, measured))
        write_manifest(folder, exported, found)
        if origin.source.tokenizer is not None and not has_tokenizer(folder):
            _copy_tokenizer(origin.source.tokenizer, folder)
        name = origin.path.resolve().name
        has_words = origin.source.tokenizer is not None
        page = render_card(name, exported, job, found, origin.report, tokenizer=has_words)
        (folder / CARD).write_text(page, encoding="utf-8")

    return export(origin.source, target, out, finish=finish), found


def _measured(folder: Path, target: str, prepared: Prepared, progress: Progress) -> Evaluation:
    """By the target's runtime, from the folder just written."""
    engine, data = TARGETS[target].open(folder), prepared.data
    total, done = len(next(iter(data.test.values()))), 0

    def answers(batch: Any) -> Any:
        nonlocal done
        logits = engine(batch)
        done += len(logits)
        progress(f"test in {target}", done, total)
        return logits

    size = BATCH * (16 if data.task == "lm" else 1)  # texts come in sixteenths
    if target == "hf-remote":
        size = 16 * total  # each batch is a process
    return evaluate_answers(answers, data.test, task=data.task, classes=data.classes, batch_size=size)


def _about(origin: Origin, exported: Exported, job: Job, measured: Evaluation | None) -> dict[str, Any]:
    """The manifest's entries beside those of the export itself."""
    report, anatomy = origin.report, job.anatomy
    own = provenance(seed=0, threads=1, data_fingerprint="")
    about: dict[str, Any] = {
        "model": {
            "family": anatomy.family,
            "model_type": anatomy.model_type,
            "kind": job.kind,
            "layers": len(anatomy.layers),
            "backbone_params": anatomy.backbone_params,
            "total_params": anatomy.total_params,
        },
        "source": str(origin.path),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": own["versions"] | _versions(TARGETS[exported.target].packages),
        "evaluation": None if measured is None else to_jsonable(measured),
        "stage": None,
    }
    if report:
        about["run"] = {
            key: report.get(key) for key in ("dataset", "split", "seeds", "compression", "metric")
        }
        about["run"]["provenance"] = report.get("provenance")
    if measured is not None and report:
        # what the format itself cost, as one more stage of the cascade
        about["stage"] = {
            "index": len(report["stages"]),
            "granularity": exported.precision if exported.precision != "as stored" else exported.target,
            "metric_before": report["metric"]["final"],
            "metric_after": measured.metric.value,
            "size_bytes_before": report["size_bytes"]["final"],
            "size_bytes_after": exported.size_bytes,
        }
    return about


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of importable packages, which may be distributed under another name."""
    known = packages_distributions()
    return {name: version(known[name][0]) for name in packages if name in known}


def _tokenizer(folder: Path, run: RunDir | None) -> Path | None:
    """The folder's own, or what the run's configuration names."""
    if has_tokenizer(folder):
        return folder
    if run is None:
        return None
    model = run.config().model
    named = model.tokenizer or model.path
    if named is None:
        return None
    located = locate(named, what="tokenizer", files=TOKENIZER)
    return located if has_tokenizer(located) else None


def _copy_tokenizer(source: Path, folder: Path) -> None:
    """As transformers writes one, whatever files it came in; chat templates and vocabulary files stay as they are."""
    tokenizer_in(source).save_pretrained(folder)
    for name in ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model"):
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def refused_by_target(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Every target, and why it cannot express a model of this config."""
    anatomy, rows = anatomy_of(config), []
    for name in TARGETS:
        reasons, title = refusals(anatomy, name, config), TARGETS[name].title
        rows.append({"target": name, "title": title, "expresses": not reasons, "reasons": list(reasons)})
    return rows
