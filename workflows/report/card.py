"""The model card of an export: what it is, how to run it, its figures, where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cascade_ops.export import TARGETS, Exported, Job, auto_name_of
from workflows.report import format as fmt
from workflows.report.render import environment

MEANT = {
    "signal": "windows of the vibration signal, each of zero mean and unit variance",
    "input_ids": "token ids",
    "attention_mask": "1 for tokens, 0 for padding",
    "pixel_values": "pictures as the image processor of the original model makes them",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    name: str
    shape: str
    meaning: str


def render_card(
    name: str,
    exported: Exported,
    job: Job,
    about: Mapping[str, Any],
    report: Mapping[str, Any],
    *,
    tokenizer: bool,
) -> str:
    """README.md of the exported folder.

    Args:
        about: the manifest's entries.
        report: of the run that made the model; empty without one.
        tokenizer: whether the folder has one.
    """
    entry = TARGETS[exported.target]
    names = job.config.architectures or ()
    auto = auto_name_of(names[0]) if names and job.kind != "diagnosis" else "AutoModel"
    title = f"{report['model']}, {fmt.factor(report['compression']['backbone'])} smaller" if report else name
    return (
        environment()
        .get_template("card.md.j2")
        .render(
            title=title,
            name=name,
            exported=exported,
            about=about,
            report=report,
            entry=entry,
            how=entry.how.format(auto=auto, input=", ".join(job.probes)),
            inputs=[_input(key, tuple(one.shape), str(one.dtype)) for key, one in job.probes.items()],
            classes=getattr(job.config, "classes", ()),
            rate_hz=job.source.rate_hz,
            tokenizer=tokenizer,
            kind=job.kind,
            fmt=fmt,
            style=fmt.metric_style(report["metric"]["name"]) if report else None,
        )
        + "\n"
    )


def _input(name: str, shape: tuple[int, ...], dtype: str) -> Input:
    free = name in ("input_ids", "attention_mask")
    sizes = ("batch", "length") if free else ("batch", *map(str, shape[1:]))
    return Input(
        name=name,
        shape=f"{dtype.removeprefix('torch.')} ({', '.join(sizes)})",
        meaning=MEANT.get(name, ""),
    )
