"""A finished run, told to a person (``report.html``) and to a machine (``report.json``).

The page is one self-contained file: no network, no fonts, no scripts from elsewhere, readable without
JavaScript, in light and dark, narrow and wide, and on paper.
"""

from workflows.report.diagnosis import ExampleDiagnosis
from workflows.report.machine import machine_view, read_machine_view
from workflows.report.render import render_html, write_report

__all__ = ["ExampleDiagnosis", "machine_view", "read_machine_view", "render_html", "write_report"]
