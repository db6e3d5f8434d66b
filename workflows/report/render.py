"""Report to HTML, and both views to files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2

from cascade_ops.results import CompressionReport
from workflows.report import format as fmt
from workflows.report.diagnosis import ExampleDiagnosis
from workflows.report.machine import machine_view
from workflows.report.view import page_view


def render_html(
    report: CompressionReport, *, artifacts: Mapping[str, str], examples: Sequence[ExampleDiagnosis] = ()
) -> str:
    """The whole page as one string.

    From the free-form part of the report it understands ``data["source"]`` ("simulated" is announced at
    the top) and ``data["notes"]`` (what a reader must know first); the rest is listed as it is.
    """
    page = page_view(report, artifacts=artifacts, examples=examples)
    return environment().get_template("template.html.j2").render(page=page, report=report, fmt=fmt)


def write_report(
    report: CompressionReport,
    directory: Path,
    *,
    artifacts: Mapping[str, str],
    examples: Sequence[ExampleDiagnosis] = (),
) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html`` into ``directory`` and return their paths.

    Each appears complete or not at all; a previous version is replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    document = machine_view(report, artifacts=artifacts, examples=examples)
    page = render_html(report, artifacts=artifacts, examples=examples)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)
    return write_page(directory / "report.json", text + "\n"), write_page(directory / "report.html", page)


def write_page(path: Path, text: str) -> Path:
    """Write ``text`` beside ``path``, then rename: a reader never meets half a file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a colleague from opening the page
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@cache
def environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
