"""What an export target is, and the one way an export goes: refuse, write, reload, compare, and only then say ok."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from cascade_ops.anatomy import ModelAnatomy, anatomy_of
from cascade_ops.batches import Batch, length_of, take
from cascade_ops.checkpoint import load_pruned, read_config
from cascade_ops.engines.base import Engine, Parity, compare
from cascade_ops.errors import ExportError, UsageError
from cascade_ops.export.auto import auto_name_of
from cascade_ops.export.plain import Refusals
from cascade_ops.files import written_whole
from cascade_ops.probes import probes_for
from cascade_ops.registry import Registry
from cascade_ops.serde import to_jsonable
from cascade_ops.weights import weight_files

Kind = Literal["lm", "diagnosis", "encoder", "image"]
"""What a model answers: next tokens, the class of a signal, hidden or masked tokens, the class of a picture."""
MANIFEST = "export.json"
SCHEMA = "cascade.export/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is exported.

    Attributes:
        folder: of the model.
        tokenizer: folder of its tokenizer, where there is one.
        precision: of the weights; None: the target's first.
        rate_hz: of a classifier's signals.
    """

    folder: Path
    tokenizer: Path | None = None
    precision: str | None = None
    rate_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An export under way: what ``write`` gets to know."""

    source: Source
    config: PreTrainedConfig
    anatomy: ModelAnatomy
    kind: Kind
    precision: str
    probes: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A runtime that a model can be written for.

    Attributes:
        title: in a few words.
        refuses: what the runtime cannot express of a shape; planning obeys it.
        kinds: the kinds of model that it runs.
        precisions: of the weights, the default first, each with the difference from plain PyTorch (``Parity``) that is
            put down to it.
        write: the model into an empty folder; it may change the model. Returns notes for the reader.
        open: the folder alone, in the runtime itself.
        how: three lines that run the folder, for its model card; ``{auto}`` is the Auto class, ``{input}`` the
            inputs' names.
        refuses_config: what it cannot express of a config, dense or cut, in a shape that it can.
        packages: importable names beyond this package's own dependencies; ``extra`` installs them.
    """

    title: str
    refuses: Callable[[ModelAnatomy], Refusals]
    kinds: tuple[Kind, ...]
    precisions: Mapping[str, float]
    write: Callable[[PreTrainedModel, Path, Job], tuple[str, ...]]
    open: Callable[[Path], Engine]
    how: str
    packages: tuple[str, ...] = ()
    extra: str = "export"
    refuses_config: Callable[[PreTrainedConfig, ModelAnatomy], Refusals] = lambda config, anatomy: ()


TARGETS: Registry[Target] = Registry("export target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export; ``size_bytes`` are of all files but the tokenizer's and the card."""

    target: str
    precision: str
    folder: Path
    parity: Parity
    size_bytes: int
    source_bytes: int
    notes: tuple[str, ...] = field(default=())


def refusals(anatomy: ModelAnatomy, target: str, config: PreTrainedConfig | None = None) -> Refusals:
    """What ``target`` cannot express of a shape; with its ``config``, of that model. Raises UnknownNameError."""
    entry = TARGETS[target]
    kind = None if config is None else kind_of(config)
    if kind is not None and kind not in entry.kinds:
        return (f"expected a model of the kind {' or '.join(entry.kinds)}, found one of the kind {kind}",)
    found = entry.refuses(anatomy)
    return found if found or config is None else entry.refuses_config(config, anatomy)


def export(
    source: Source, target: str, out: Path, *, finish: Callable[[Path, Exported, Job], None] | None = None
) -> Exported:
    """Write the model for ``target`` into the new folder ``out``, whole or not at all.

    Before anything is written, what the target cannot express is refused; before ``out`` appears, the target's own
    runtime has reloaded the files and answered as plain PyTorch does.

    Args:
        finish: adds to the folder once the comparison has passed (a model card, a tokenizer).

    Raises:
        UnknownNameError, UsageError: no such target or precision, a package is missing, ``out`` exists.
        ExportError: the target cannot express the model, or answers differently.
        CheckpointError: the model cannot be loaded.
    """
    entry = TARGETS[target]
    job = _job(source, target, entry)
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another folder for the export, or remove it")
    model = load_pruned(source.folder)
    rate = {} if source.rate_hz is None else {"rate_hz": source.rate_hz}
    job = replace(job, probes=probes_for(model, **rate))
    expected = _expected(model, job)
    with written_whole(out) as scratch:
        notes = entry.write(model, scratch, job)
        parity = _compared(target, entry, scratch, job, expected)
        exported = Exported(
            target=target,
            precision=job.precision,
            folder=out,
            parity=parity,
            size_bytes=sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()),
            source_bytes=sum(file.stat().st_size for file in weight_files(source.folder)),
            notes=notes,
        )
        if finish is not None:
            finish(scratch, exported, job)
    return exported


def kind_of(config: PreTrainedConfig) -> Kind:
    """What a model of this config answers."""
    if config.model_type == "signal_classifier":
        return "diagnosis"
    names = config.architectures or ()
    if any(name.endswith("ForImageClassification") for name in names):
        return "image"
    return "lm" if not names or auto_name_of(names[0]) == "AutoModelForCausalLM" else "encoder"


def _job(source: Source, target: str, entry: Target) -> Job:
    """Everything that can be refused without weights. Raises UsageError, ExportError."""
    config = read_config(source.folder)
    anatomy, kind = anatomy_of(config), kind_of(config)
    precision = source.precision or next(iter(entry.precisions))
    if precision not in entry.precisions:
        raise UsageError(f"precision: {target} has {', '.join(entry.precisions)}, got {precision!r}")
    refused = refusals(anatomy, target, config)
    if refused:
        shown = "; ".join(refused[:5]) + (f"; and {len(refused) - 5} more" if len(refused) > 5 else "")
        able = [name for name in TARGETS if not refusals(anatomy, name, config)]
        plan = f"; or plan for it: cascade compress --target-runtime {target}" if kind in entry.kinds else ""
        raise ExportError(
            f"{target} cannot express this model: {shown}. Targets that can: {', '.join(able) or 'none'}{plan}."
        )
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{target} needs {', '.join(missing)}, not installed here: pip install 'cascade-ops[{entry.extra}]'."
        )
    return Job(source=source, config=config, anatomy=anatomy, kind=kind, precision=precision, probes={})


def _expected(model: PreTrainedModel, job: Job) -> list[Tensor]:
    """Plain PyTorch's logits of every probe together, and of the first alone at half its length."""
    with torch.inference_mode():
        logits = [model(**batch).logits.float() for batch in _batches(job)]
    if not all(bool(one.isfinite().all()) for one in logits):
        raise ExportError(
            "expected finite logits from plain PyTorch, found NaN or infinite ones. Check the model's weights."
        )
    return logits


def _batches(job: Job) -> tuple[Batch, Batch]:
    """Runtimes specialise on shapes: one batch of all, and one of another size and, for tokens, length."""
    alone = take(job.probes, slice(0, 1))
    if "input_ids" in alone:
        alone = {name: tensor[:, : max(2, tensor.shape[1] // 2)] for name, tensor in alone.items()}
    return job.probes, alone


def _compared(target: str, entry: Target, folder: Path, job: Job, expected: list[Tensor]) -> Parity:
    """The worst of the comparisons. Raises ExportError where it does not hold."""
    tolerance, found = entry.precisions[job.precision], []
    try:
        engine = entry.open(folder)
        answered = [engine(batch) for batch in _batches(job)]
    except Exception as error:  # runtimes raise whatever they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ExportError(f"{target}: its runtime cannot run what was written ({reason})") from error
    for answers, logits in zip(answered, expected, strict=True):
        if answers.shape != logits.shape:
            raise ExportError(
                f"{target}: expected logits of shape {tuple(logits.shape)} from its runtime, "
                f"found {tuple(answers.shape)}"
            )
        found.append(compare(target, answers.float(), logits, tolerance))
    worst = max(found, key=lambda one: (not one.holds, one.difference))
    if not worst.holds:
        raise ExportError(
            f"{target} ({job.precision}): expected the answers of plain PyTorch within a total variation of "
            f"{tolerance:g}, found {worst.difference:.3g} on {length_of(job.probes)} probes (same answer on "
            f"{worst.agreement:.0%}). Nothing was written."
        )
    return worst


def write_manifest(folder: Path, exported: Exported, about: Mapping[str, Any]) -> None:
    """``export.json``: what this is, where it is from, and how close its answers are to plain PyTorch's."""
    document = {
        "schema": SCHEMA,
        "target": exported.target,
        "precision": exported.precision,
        "parity": to_jsonable(exported.parity),
        "size_bytes": exported.size_bytes,
        "source_bytes": exported.source_bytes,
        "notes": list(exported.notes),
        **about,
    }
    (folder / MANIFEST).write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
