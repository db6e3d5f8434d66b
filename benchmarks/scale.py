"""Memory and time of scoring models of 6.25 billion parameters, against shard count and depth.

    python benchmarks/random_checkpoint.py FOLDER/gqa-swiglu gqa-swiglu       (12.5 GB each, seconds to minutes)
    python benchmarks/scale.py FOLDER gqa-swiglu:28 mha-gelu:30 …              (folder name : shards)

Each run is ``cascade score`` with every criterion on two one-core workers. Twice a second the proportional
set sizes (PSS: shared pages divided among those who share them) of all its processes are added up: the workers,
the node's store (raylet), and everything with Ray's services and the driver. Results are appended to
benchmarks/results/scale.jsonl; the table and plot in docs/ are rewritten.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from page import PAGE, rewrite, table

RESULTS = Path(__file__).resolve().parent / "results" / "scale.jsonl"
PLOT = PAGE.parent / "scale.svg"
GIB = 2**30
BUDGET = 6.0
"""GiB, for workers and object store together."""


def measure(folder: Path, shards: int, samples: int, length: int) -> dict[str, Any]:
    """One run of ``cascade score`` and the memory it took."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [
            str(Path(sys.executable).parent / "cascade"),
            "score",
            str(folder),
            "--data",
            "random",
            "--quiet",
        ]
        options = {
            "samples": samples,
            "length": length,
            "shards": shards,
            "workers": 2,
            "threads": 1,
            "out": out,
        }
        flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        began = time.perf_counter()
        process = subprocess.Popen([*command, *flags], start_new_session=True)
        peaks = {"workers": 0, "store": 0, "all": 0, "working": 0}
        while process.poll() is None:
            for name, value in usage(process.pid).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(0.5)
        if process.returncode:
            sys.exit(f"{folder}: cascade score failed")
        report = json.loads((out / "score.json").read_text())
    return {
        "model": folder.name,
        "layers": len(report["heads_per_kv"]),
        "params": report["params"],
        "shards": shards,
        "tokens": report["tokens"],
        "seconds": report["seconds"],
        "wall": time.perf_counter() - began,
        "largest_shard": max(shard["bytes"] for shard in report["shards"]),
        "peaks": peaks,
    }


def usage(root: int) -> dict[str, int]:
    """PSS in bytes of the processes below ``root``: Ray starts its own in other sessions, so by parentage."""
    found = {"workers": 0, "store": 0, "all": 0}
    for pid in descendants(root):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        size = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
        found["all"] += size
        if name.startswith("ray::ShardWorker"):
            found["workers"] += size
        elif "raylet/raylet" in name.split(" ")[0]:
            found["store"] += size
    found["working"] = found["workers"] + found["store"]
    return found


def descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def page_table(rows: list[dict[str, Any]]) -> str:
    header = (
        "model",
        "layers",
        "parameters",
        "shards",
        "largest shard, GiB",
        "workers + object store, peak GiB",
        "all processes, peak GiB",
        "tokens",
        "time, s",
        "tokens/s",
    )
    lines = [
        (
            one["model"],
            one["layers"],
            f"{one['params'] / 1e9:.2f} B",
            one["shards"],
            f"{one['largest_shard'] / GIB:.2f}",
            f"{one['peaks']['working'] / GIB:.2f}",
            f"{one['peaks']['all'] / GIB:.2f}",
            f"{one['tokens']:,}",
            f"{one['seconds']:.0f}",
            f"{one['tokens'] / one['seconds']:.1f}",
        )
        for one in rows
    ]
    return table(header, lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """Memory against shard count (models of full depth), and against depth (one block a shard)."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "scale", "font.size": 10, "svg.fonttype": "none"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    deepest = {one["model"]: one["layers"] for one in rows if one["params"] > 6e9}
    for name, marker in zip(deepest, "os", strict=False):
        mine = sorted((one for one in rows if one["model"] == name), key=lambda one: one["shards"])
        left.plot(
            [one["shards"] for one in mine],
            [one["peaks"]["working"] / GIB for one in mine],
            marker=marker,
            label=f"{name}, 6.25 B",
        )
    single = sorted((one for one in rows if one["shards"] == one["layers"]), key=lambda one: one["layers"])
    flat = [one for one in single if one["model"].startswith("gqa")]
    right.plot(
        [one["layers"] for one in flat],
        [one["peaks"]["working"] / GIB for one in flat],
        marker="o",
        label="workers + object store",
    )
    right.plot(
        [one["layers"] for one in flat],
        [one["params"] * 2 / GIB for one in flat],
        marker="x",
        linestyle=":",
        label="the model itself",
    )
    left.axhline(BUDGET, color="grey", linewidth=0.8, linestyle="--")
    left.set(xlabel="shards", ylabel="peak memory, GiB", title="falls with shards")
    right.set(xlabel="layers (one block a shard)", title="flat in depth")
    left.legend(frameon=False)
    right.legend(frameon=False)
    left.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*", help="name:shards")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    for run in arguments.runs:
        name, _, shards = run.partition(":")
        found = measure(arguments.folder / name, int(shards), arguments.samples, arguments.length)
        print(json.dumps(found), file=sys.stderr)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(found) + "\n")
    latest = {}
    for line in RESULTS.read_text().splitlines():
        one = json.loads(line)
        latest[one["model"], one["shards"]] = one
    rows = sorted(latest.values(), key=lambda one: (-one["params"], one["model"], one["shards"]))
    text = page_table(rows)
    rewrite("scale", text)
    plot(rows)
    print(text)


if __name__ == "__main__":
    main()
