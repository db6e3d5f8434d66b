"""The figures of ``cascade study sia`` in docs/sia.md.

    cascade study sia --out studies/sia
    python benchmarks/sia_study.py [studies/sia] [--mark study]

Its rows are kept as benchmarks/results/MARK.parquet; without a folder the table is written from those.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from page import rewrite

from workflows.study.analysis import analyse, page
from workflows.study.job import TABLE

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="of a finished study")
    parser.add_argument("--mark", default="study", help="where in docs/sia.md, and the name of the rows")
    arguments = parser.parse_args()
    kept = ROOT / "results" / f"{arguments.mark}.parquet"
    if arguments.folder is not None:
        shutil.copyfile(arguments.folder / TABLE, kept)
    rows = pq.read_table(kept).to_pylist()
    text = page(rows, analyse(rows))
    print(text)
    rewrite(arguments.mark, text, ROOT.parent / "docs" / "sia.md")


if __name__ == "__main__":
    main()
