"""The SIA check itself: the same verdict on other draws? its cost? and what cuts do to pretrained language models.

    python benchmarks/sia.py [--models DIR] [--only NAME …]

*Draws*: the sixteen architectures of ``cascade study sia`` (seed 0, CWRU) and the pretrained models under
``--models`` (folders iglm, stories15m, smollm2; those missing are left out) are checked on five disjoint calibration
draws. *Cost* is the CPU time of such a check at the default budget over that of one sweep of gradient scoring on the
same samples, both in one thread. *Weights*: perplexity of the pretrained models after cuts without recovery. SmolLM2 is
calibrated on WikiText-2's validation text and measured on its test text; the other two, which come without text, on
sequences they draw themselves, other ones for calibration. Results are appended to benchmarks/results/sia.jsonl; what
is there already is not run again. The tables in docs/sia.md are rewritten.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import rewrite, table

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "sia.jsonl"
PAGE = ROOT.parent / "docs" / "sia.md"
DRAWS = 5
PRETRAINED = {"iglm": (128, 112), "stories15m": (128, 128), "smollm2": (32, 64)}
"""Calibration sequences and their length."""
TESTED = 32
RATIOS = (0.2, 1 / 3, 0.5)
ARMS = ("regrouped", "apart", "error")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, five calibration draws, and what it is tested on (texts only)."""

    model: Any
    draws: list[Any]
    test: Any | None = None


def text_folder() -> Path:
    data = Path(os.environ.get("CASCADE_DATA_DIR") or ROOT.parent.parent / "shared" / "data")
    return data / "text"


def pretrained(name: str, folder: Path) -> Subject:
    """Five draws of other sequences, and test sequences."""
    import torch

    from cascade_ops.checkpoint import load_pruned
    from cascade_ops.tasks import token_sequences
    from cascade_ops.tokenizers import tokenizer_in

    model: Any = load_pruned(folder)
    count, length = PRETRAINED[name]
    if (folder / "tokenizer.json").is_file():
        tokenizer = tokenizer_in(folder)
        ids = token_sequences(text_folder() / "wikitext-2-valid.tokens", tokenizer, length)
        tests = token_sequences(text_folder() / "wikitext-2-raw-test.txt", tokenizer, 256)
        test = tests[torch.linspace(0, len(tests) - 1, TESTED).long()]
    else:
        ids = own_words(model, DRAWS * count + 4 * TESTED, length)
        test, ids = ids[-4 * TESTED :], ids[: -4 * TESTED]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    draws = [{"input_ids": ids[order[n * count : (n + 1) * count]]} for n in range(DRAWS)]
    return Subject(model=model, draws=draws, test={"input_ids": test})


def own_words(model: Any, count: int, length: int) -> Any:
    """Sequences that the model itself draws."""
    import torch

    torch.manual_seed(0)
    start = torch.full((count, 1), model.config.bos_token_id or 1)
    if model.config.model_type == "gpt2":
        start = torch.tensor([[31, 26]]).expand(count, 2)  # a human heavy chain
    parts = [
        model.generate(
            some,
            attention_mask=torch.ones_like(some),
            do_sample=True,
            max_new_tokens=length - some.shape[1],
            min_new_tokens=length - some.shape[1],
            pad_token_id=0,
            eos_token_id=None,
        )
        for some in start.split(64)
    ]
    return torch.cat(parts)


def trained(cell: Any) -> Subject:
    """A cell of the study, seed 0, and five draws of 256 training windows."""
    import torch

    from cascade_ops.batches import take
    from cascade_ops.training import fit
    from workflows.prepare import build_dense, prepare_data
    from workflows.study.cell import StudyOptions, job_config

    config = job_config(cell, 0, StudyOptions())
    data = prepare_data(config).data
    torch.manual_seed(0)
    model = build_dense(config, data)
    fit(model, data.train, config.train, seed=0, augment=data.augment)
    windows = len(data.train["labels"])
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(0))
    size = min(256, windows // DRAWS)
    return Subject(
        model=model, draws=[take(data.train, order[n * size : (n + 1) * size]) for n in range(DRAWS)]
    )


def checks(name: str, subject: Subject) -> Iterable[Row]:
    """One row for each draw: verdicts, and the check's time over that of a sweep."""
    from cascade_ops.batches import length_of, sequential
    from cascade_ops.scoring import score
    from cascade_ops.sia.check import BATCH, check

    for number, data in enumerate(subject.draws):
        began = time.process_time()
        score(subject.model, sequential(data, BATCH), ("taylor",))
        sweep = time.process_time() - began
        found = check(subject.model, data, seed=number)
        seconds = time.process_time() - began - sweep
        yield {
            "part": "draw",
            "model": name,
            "draw": number,
            "samples": length_of(data),
            "sweep": sweep,
            "seconds": seconds,
            "ablations": found.ablations,
            "verdicts": {
                one.kind.value: {
                    "holds": one.holds,
                    "certain": one.certain,
                    "safe": None if one.safe is None else one.safe.value,
                    "n": None if one.safe is None else one.safe.n,
                }
                for one in found.verdicts
            },
        }


def cuts(name: str, subject: Subject) -> Iterable[Row]:
    """One row for each arm, part and ratio: perplexity after the cut, and what the check had said."""
    from cascade_ops.anatomy import anatomy_of
    from cascade_ops.evaluation import evaluate
    from cascade_ops.sia.check import check
    from workflows.study.arms import cut, judged, kind_of
    from workflows.study.cell import foretold

    def perplexity(model: Any) -> tuple[float, float]:
        metric = evaluate(model, subject.test, task="lm", batch_size=8).metric
        return metric.value, metric.high - metric.value

    one, found = judged(subject.model, subject.draws[0]), check(subject.model, subject.draws[0])
    dense = perplexity(subject.model)
    for part in ("heads", "channels"):
        for ratio in RATIOS:
            for arm in ARMS:
                model = cut(one, arm, (part,), ratio)  # type: ignore[arg-type]
                value, half = perplexity(model)
                yield {
                    "part": "cut",
                    "model": name,
                    "cut": part,
                    "arm": arm,
                    "ratio": ratio,
                    "kept": anatomy_of(model).backbone_params / one.anatomy.backbone_params,
                    "dense": dense[0],
                    "dense_half": dense[1],
                    "perplexity": value,
                    "half": half,
                    **foretold(found[kind_of(one, arm, part)], ratio),  # type: ignore[arg-type]
                }


def draws_page(rows: list[Row]) -> str:
    """Agreement and cost by model."""
    lines, same, pairs = [], 0, 0
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        cells = []
        for kind in ("layer", "head", "kv_group", "channel", "head_apart", "channel_apart"):
            found = [row["verdicts"][kind] for row in mine if kind in row["verdicts"]]
            if not found:
                cells.append("–")
                continue
            pairs += 1
            agree = len({one["holds"] for one in found}) == 1
            same += agree
            safes = [one["safe"] for one in found if one["safe"] is not None]
            span = f", {100 * min(safes):.0f}–{100 * max(safes):.0f} %" if safes else ""
            word = ("holds" if found[0]["holds"] else "violated") if agree else "**differs**"
            cells.append(f"{word}{span}")
        ratios = sorted(row["seconds"] / row["sweep"] for row in mine)
        lines.append((name, mine[0]["samples"], *cells, f"{ratios[len(ratios) // 2]:.1f}"))
    head = (
        "model",
        "n",
        "layer",
        "head",
        "KV group",
        "channel",
        "head apart",
        "channel apart",
        "check ÷ sweep",
    )
    return (
        f"The same verdict on all {DRAWS} draws: {same} of {pairs} (model, unit set) pairs, {same / pairs:.0%}. "
        "Given are verdict and the range of r* over draws of n samples, and the median of the check's CPU time over "
        "that of one gradient scoring sweep.\n\n" + table(head, lines)
    )


def cuts_page(rows: list[Row]) -> str:
    """Perplexities, an arm in each column."""
    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        for part in ("heads", "channels"):
            for ratio in RATIOS:
                cell = {row["arm"]: row for row in mine if row["cut"] == part and row["ratio"] == ratio}
                told = cell["regrouped"]
                lines.append(
                    (
                        name,
                        f"{mine[0]['dense']:.2f} ± {mine[0]['dense_half']:.2f}",
                        part,
                        f"{ratio:.0%}",
                        *(
                            f"{figure(cell[arm]['perplexity'])} ± {figure(cell[arm]['half'])} "
                            f"(−{1 - cell[arm]['kept']:.1%})"
                            for arm in ARMS
                        ),
                        f"{told['gap']:.2f}",
                        f"{told['safe']:.0%}",
                    )
                )
    head = ("model", "dense", "cut", "share", *ARMS, "A(r), regrouped", "r*, regrouped")
    return (
        "Perplexity without any recovery (and the share of backbone parameters that went). One calibration draw; 95 % "
        f"intervals over test sequences ({TESTED} of 256 tokens for smollm2, {4 * TESTED} for the others):\n\n"
        + table(head, lines)
    )


def figure(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    import torch

    from workflows.study.grid import GRID

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of pretrained models")
    parser.add_argument("--only", nargs="+", help="these models only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs: dict[str, Any] = {cell.name: lambda cell=cell: trained(cell) for cell in GRID}
    for name in PRETRAINED:
        if (arguments.models / name / "config.json").is_file():
            jobs[name] = lambda name=name: pretrained(name, arguments.models / name)
    for name, build in jobs.items():
        done = {(row["part"], row["model"]) for row in read()}
        if arguments.only and name not in arguments.only:
            continue
        wanted = [
            (part, make)
            for part, make in (("cut", cuts), ("draw", checks))
            if (part, name) not in done and (part == "draw" or name in PRETRAINED)
        ]
        if not wanted:
            continue
        subject = build()
        for part, make in wanted:
            fresh = list(make(name, subject))
            with RESULTS.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in fresh)
            print(f"{name}: {part}s done", file=sys.stderr, flush=True)
    rows = read()
    for mark, part, make_page in (("draws", "draw", draws_page), ("weights", "cut", cuts_page)):
        some = [row for row in rows if row["part"] == part]
        if some:
            text = make_page(some)
            print(text, end="\n\n")
            rewrite(mark, text, PAGE)


def read() -> list[Row]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


if __name__ == "__main__":
    main()
