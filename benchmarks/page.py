"""Tables in docs/benchmarks.md: what stands between two marks is rewritten by the script that measured it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def rewrite(mark: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    old = page.read_text()
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = old.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{page}: expected the marks {start} and {end}")
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
