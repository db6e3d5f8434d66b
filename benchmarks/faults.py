"""What SIGKILL costs: a cascade is killed at random moments, the same command is given again until it ends, and
the weights of every step are compared with those of a run that nobody disturbed.

    python benchmarks/faults.py [--trials 20] [--seed 0]

Trials take turns at the parts of a run: start-up, each step, the final model and report. The moment is uniform over
the part's duration in an undisturbed run; half of the trials are killed a second time, in the same part or a later
one. The table in docs/benchmarks.md is rewritten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from page import rewrite, table

ROOT = Path(__file__).resolve().parent.parent
TWICE = 0.5
"""Share of trials that are killed a second time."""
POLL = 0.002
LAST = "final model and report"
CONFIG: dict[str, Any] = {
    "threads": 1,
    "data": {
        "name": "simulated",
        "split": "load:3",
        "length": 256,
        "stride": 128,
        "calibration": 32,
        "options": {"seconds": 1.0, "labels": ["N", "IR014", "OR014"], "loads": ["0", "3"]},
    },
    "model": {
        "patch": 32,
        "config": {
            "model_type": "gpt2",
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 4,
            "n_inner": 64,
            "n_positions": 8,
            "vocab_size": 1,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    },
    "train": {"steps": 200, "batch_size": 16},
    "schedule": {"target": 4, "recovery": {"steps": 200, "batch_size": 16}},
}


@dataclass(kw_only=True)
class Trial:
    """One run that was killed: at which steps, and whether it ended as it should."""

    hit: list[str] = field(default_factory=list)
    same: bool = False
    starts: int = 0


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "workflows.cli", "compress", str(config), "--out", str(out), "--quiet"]


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a run."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*.safetensors"))
    }


def step_hit(run: Path, pid: int) -> str:
    """Where process ``pid`` was when it was killed, by its own status."""
    try:
        status = json.loads((run / "status.json").read_text())
    except FileNotFoundError:
        return "start-up"
    if status["pid"] != pid:  # an earlier start's
        return "start-up"
    if (run / "report.json").is_file() and (run / "report.html").is_file():
        return "after the end"
    if status["state"] == "complete":
        return "after the end"
    waiting = [step for step in status["steps"] if step["state"] in ("waiting", "running")]
    return str(status["step"]) if waiting else LAST


def durations(run: Path, whole: float) -> dict[str, float]:
    """Seconds of each part of an undisturbed run: start-up, its steps, and what comes after the last of them."""
    status = json.loads((run / "status.json").read_text())
    steps = {str(step["name"]): float(step["seconds"]) for step in status["steps"]}
    own = float(status["updated"]) - float(status["started"])
    return {"start-up": whole - own, **steps, LAST: max(0.0, own - sum(steps.values()))}


def strike(config: Path, out: Path, part: str, after: float) -> str | None:
    """Start the command and kill it ``after`` seconds after it came to ``part``. Where it was; None if it had ended."""
    process = subprocess.Popen(command(config, out), cwd=ROOT, stdout=subprocess.DEVNULL)
    while (
        part != "start-up"
        and step_hit(out, process.pid) not in (part, "after the end")
        and process.poll() is None
    ):
        time.sleep(POLL)
    try:
        if process.wait(after) != 0:
            sys.exit(f"{out}: the command failed")
        return None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return step_hit(out, process.pid)


def trial(config: Path, out: Path, parts: dict[str, float], number: int, pick: random.Random) -> Trial:
    """Kill the command in the parts that it is this trial's turn to hit, then let it end."""
    found, names = Trial(), list(parts)
    aims = [number % len(names)]
    if pick.random() < TWICE:
        aims.append(pick.randint(aims[0], len(names) - 1))
    for part in (names[aim] for aim in aims):
        found.starts += 1
        hit = strike(config, out, part, pick.uniform(0, parts[part]))
        if hit is None:
            break
        found.hit.append(hit)
    subprocess.run(command(config, out), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    found.starts += 1
    return found


def page_text(trials: list[Trial], duration: float, files: int) -> str:
    """The section between the marks."""
    hits: Counter[str] = Counter()
    good: defaultdict[str, int] = defaultdict(int)
    for one in trials:
        for step in one.hit:
            hits[step] += 1
            good[step] += one.same
    rows = [(step, hits[step], good[step]) for step in sorted(hits)]
    same, early = sum(one.same for one in trials), sum(not one.hit for one in trials)
    return (
        f"{same} of {len(trials)} trials, {sum(hits.values())} kills in all, ended with the same SHA-256 in all "
        f"{files} weight files (every step's and the final ones); {early} of them ended before the moment of their "
        f"kill. An undisturbed run took {duration:.1f} s, start-up "
        "included; a kill during a step costs that step only.\n\n"
        + table(("killed during", "kills", "in trials that ended with the same weights"), rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pick = random.Random(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="cascade-faults-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        subprocess.run(command(config, folder / "first"), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        began = time.perf_counter()
        subprocess.run(command(config, folder / "whole"), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        duration = time.perf_counter() - began
        parts = durations(folder / "whole", duration)
        expected = digests(folder / "whole")
        trials = []
        for number in range(options.trials):
            out = folder / f"trial-{number}"
            one = trial(config, out, parts, number, pick)
            one.same = digests(out) == expected
            trials.append(one)
            verdict = "same" if one.same else "OTHER"
            print(f"{number}: killed during {', '.join(one.hit) or 'nothing'}: {verdict} weights", flush=True)
    text = page_text(trials, duration, len(expected))
    print(text)
    rewrite("faults", text)
    if not all(one.same for one in trials):
        sys.exit("some trials ended with other weights")


if __name__ == "__main__":
    main()
