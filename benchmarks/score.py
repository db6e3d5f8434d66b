"""How fast scoring is: beside a plain forward, beside the floor of what gradients cost, beside two peers, and
on workers beside one process.

    python benchmarks/score.py [forward gradients peers cluster]      (with peers: pip install torch-pruning==1.6.1)

Every row is a ratio of times measured in turn in one run, one thread. Weights are random: neither speed nor
memory depends on their values. The table in docs/benchmarks.md is rewritten.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from page import rewrite, table
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cascade_ops.batches import take
from cascade_ops.checkpoint import save_pruned
from cascade_ops.criteria import CRITERIA
from cascade_ops.scoring import needs_of, score, scores_from
from cascade_ops.shards import Piece, layout_of
from cascade_ops.statistics import Statistics
from cascade_ops.sweep import GRADIENT, backward, forward
from workflows.scoring.driver import Request, ShardedScores, make_request, score_here
from workflows.scoring.job import MICRO_BATCH
from workflows.scoring.sharded import score_sharded
from workflows.scoring.sizing import Wish
from workflows.scoring.worker import memory

RESULTS = Path(__file__).resolve().parent / "results" / "score.json"
ALL = tuple(CRITERIA)
FORWARD = tuple(name for name in ALL if GRADIENT not in CRITERIA[name].needs)
MIB = 2**20
BATCHES = 4


def llama_gqa() -> PreTrainedModel:
    """SmolLM2-135M's shape: GQA 9/3, SwiGLU."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            intermediate_size=1536,
            vocab_size=49152,
            tie_word_embeddings=True,
        )
    )


def llama_mha() -> PreTrainedModel:
    """The same width without shared K/V, which Torch-Pruning can do."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=576,
            num_hidden_layers=12,
            num_attention_heads=9,
            num_key_value_heads=9,
            intermediate_size=1536,
            vocab_size=8192,
        )
    )


def gpt2() -> PreTrainedModel:
    """GPT-2 small: MHA, GELU."""
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))


def wide_block() -> PreTrainedModel:
    """Two blocks of a 6 B model: GQA 32/8, SwiGLU, width 4096."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=4096,
            num_hidden_layers=2,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=14336,
            vocab_size=1024,
        )
    )


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], torch.dtype]] = {
    "Llama 135 M, GQA 9/3, float32": (llama_gqa, torch.float32),
    "GPT-2 124 M, MHA, float32": (gpt2, torch.float32),
    "2 blocks of width 4096, GQA 32/8, bfloat16": (wide_block, torch.bfloat16),
}


def ready(name: str, samples: int = 4) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A model without weight gradients, and ``samples`` × 256 tokens."""
    build, dtype = MODELS[name]
    torch.manual_seed(0)
    model = build().to(dtype).eval().requires_grad_(False)
    return model, {"input_ids": torch.randint(0, model.config.vocab_size, (samples, 256))}


def in_turn(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Median seconds of each call; they take turns, so that a slow minute falls on all."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
    return [stats.median(found) for found in times]


def forward_only() -> list[dict[str, Any]]:
    """All forward criteria in one pass over 4,096 tokens, scores included, beside the backbone's plain forward."""
    rows = []
    for name in MODELS:
        model, batch = ready(name)
        piece = Piece.whole(model)

        @torch.no_grad()
        def plain(model: nn.Module = model, batch: dict[str, torch.Tensor] = batch) -> None:
            for _ in range(BATCHES):
                model.base_model(**batch, use_cache=False)

        def ours(piece: Piece = piece, batch: dict[str, torch.Tensor] = batch) -> None:
            found = Statistics.zero()
            for _ in range(BATCHES):
                found = found + forward(piece, batch, needs_of(FORWARD))[0]
            scores_from(piece.model, piece.anatomy, found, FORWARD)

        floor, mine = in_turn(3, plain, ours)
        rows.append(
            row("forward-only", name, f"{len(FORWARD)} criteria", mine, "plain forward", floor, 1.2, "≤")
        )
    return rows


def gradients() -> list[dict[str, Any]]:
    """All criteria as a shard does them (forward, then recomputation and back), beside the same as plain torch."""
    rows = []
    for name in MODELS:
        model, batch = ready(name, samples=2)
        piece = Piece.whole(model)

        def floor(model: Any = model, batch: dict[str, torch.Tensor] = batch, *, again: bool = True) -> None:
            if again:
                with torch.no_grad():
                    model.base_model(**batch, use_cache=False)
            ids = batch["input_ids"]
            embedded = model.get_input_embeddings()(ids).requires_grad_()
            logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1].float()
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            torch.autograd.grad(loss, embedded)

        def ours(piece: Piece = piece, batch: dict[str, torch.Tensor] = batch) -> None:
            found, _ = forward(piece, batch, needs_of(ALL))
            back, _ = backward(piece, batch, frozenset({GRADIENT}))
            scores_from(piece.model, piece.anatomy, found.beside(back), ALL)

        def whole(model: nn.Module = model, batch: dict[str, torch.Tensor] = batch) -> None:
            score(model, [batch], ALL)

        def bare(floor: Callable[..., None] = floor) -> None:
            floor(again=False)

        least, mine, without, single = in_turn(3, floor, ours, bare, whole)
        what = "forward + recomputation + activation backward"
        rows.append(row("gradients", name, f"{len(ALL)} criteria, sharded", mine, what, least, 1.15, "≤"))
        rows.append(
            row(
                "gradients",
                name,
                f"{len(ALL)} criteria, one piece",
                single,
                "forward + activation backward",
                without,
                0,
                "",
            )
        )
    return rows


def peers() -> list[dict[str, Any]]:
    """Taylor importance of heads and channels, beside two projects' ways; each in a process of its own.

    All go through the same micro-batches of 128 tokens, the peers' gradients accumulating.
    """
    rows = []
    for name in ("llama_mha", "gpt2"):
        mine = alone("ours", name)
        title = {"llama_mha": "Llama 57 M, MHA, float32", "gpt2": "GPT-2 124 M, MHA, float32"}[name]
        for peer, label in (
            ("torch_pruning", "Torch-Pruning 1.6.1"),
            ("param_first", "LLM-Pruner, first order"),
            ("param_mix", "LLM-Pruner, param_mix"),
        ):
            theirs = alone(peer, name)
            rows.append(
                row(
                    "peers: time",
                    title,
                    "taylor, all granularities",
                    theirs["seconds"],
                    label,
                    mine["seconds"],
                    3,
                    "≥",
                )
            )
            rows.append(
                row(
                    "peers: extra MiB",
                    title,
                    "taylor",
                    mine["extra"] / MIB,
                    label,
                    theirs["extra"] / MIB,
                    1 / 3,
                    "≤",
                )
            )
    return rows


def alone(how: str, name: str) -> dict[str, float]:
    """Seconds and extra memory of one way, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found: dict[str, float] = pool.apply(one_way, (how, name))
    return found


def one_way(how: str, name: str) -> dict[str, float]:
    """Best of three, and the peak above what stood in memory before the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = {"llama_mha": llama_mha, "gpt2": gpt2}[name]().eval()
    batch = {"input_ids": torch.randint(0, model.config.vocab_size, (8, 64))}
    micro = 2
    call: Callable[[], object]
    if how == "ours":
        micros = [take(batch, slice(start, start + micro)) for start in range(0, 8, micro)]
        call = lambda: score(model, micros, ("taylor",))  # noqa: E731
    else:
        import peers as theirs

        if how == "torch_pruning":
            call = lambda: theirs.torch_pruning_taylor(model, batch, micro=micro)  # noqa: E731
        else:
            call = lambda: theirs.llm_pruner_taylor(model, batch, mode=how, micro=micro)  # noqa: E731
    before, _ = memory()
    seconds, peak = [], 0
    for _ in range(3):
        began = time.perf_counter()
        found = call()
        took = time.perf_counter() - began
        # The peer's own figures leave out what our adapter does for it (copying GPT-2 into nn.Linear).
        own = getattr(found, "build_seconds", None)
        seconds.append(took if own is None else own + found.score_seconds)  # type: ignore[attr-defined]
        peak = peak or memory()[1]
        del found
    return {"seconds": min(seconds), "extra": float(peak - before)}


def cluster() -> list[dict[str, Any]]:
    """Ray at one worker beside this process alone, and two one-core workers beside one, in the micro-batches of
    ``cascade score``. A worker's start-up, reading and first touch of memory count.
    Least of two rounds."""
    import ray

    name = "Llama 135 M, GQA 9/3, float32"
    model, _ = ready(name)
    with tempfile.TemporaryDirectory() as scratch:
        save_pruned(model, Path(scratch) / "model")
        request = _work(Path(scratch) / "model")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        ways: list[Callable[[], ShardedScores]] = [
            lambda: score_here(request),
            lambda: score_sharded(request, Wish(shards=1, workers=1)),
            lambda: score_sharded(request, Wish(shards=1, workers=2)),
            lambda: score_sharded(request, Wish(shards=2, workers=2)),
        ]
        rounds = [[way().seconds for way in ways] for _ in range(2)]
        here, one, two, pipelined = map(min, zip(*rounds, strict=True))
        ray.shutdown()
    tokens = f"{request.tokens:,} tokens, all criteria"
    return [
        row("Ray, one worker", name, tokens, one, "this process alone", here, 1.05, "≤"),
        row("two workers, data-parallel", name, tokens, one, "two one-core workers", two, 1.8, "≥"),
        row("two workers, two shards", name, tokens, one, "two one-core workers", pipelined, 0, ""),
    ]


def _work(folder: Path) -> Request:
    layout = layout_of(folder)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(0, layout.config.vocab_size, (1, MICRO_BATCH), generator=generator)}
        for _ in range(30)
    ]
    return make_request(layout, batches, ALL, threads=1)


def row(
    part: str,
    model: str,
    what: str,
    numerator: float,
    beside: str,
    denominator: float,
    bound: float,
    way: str,
) -> dict[str, Any]:
    """A ratio; for peers, how many times as long they take."""
    ratio = numerator / denominator
    holds = None if not way else ratio <= bound if way == "≤" else ratio >= bound
    print(
        f"{part}, {model}, {what} | {beside}: {ratio:.3f} ({numerator:.3g} / {denominator:.3g})",
        file=sys.stderr,
    )
    return {
        "part": part,
        "model": model,
        "what": what,
        "beside": beside,
        "ratio": ratio,
        "figures": [numerator, denominator],
        "wanted": f"{way} {bound:.3g}" if way else "",
        "holds": holds,
    }


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "forward": forward_only,
    "gradients": gradients,
    "peers": peers,
    "cluster": cluster,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parser.parse_args().parts:
        found[part] = PARTS[part]()
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    rows = [one for part in PARTS for one in found.get(part, [])]
    text = table(
        ("measured", "model", "what", "beside", "ratio", "wanted", "holds"),
        [
            (
                one["part"],
                one["model"],
                f"{one['what']} ({one['figures'][0]:.3g})",
                f"{one['beside']} ({one['figures'][1]:.3g})",
                f"{one['ratio']:.2f}",
                one["wanted"],
                {True: "yes", False: "**no**", None: ""}[one["holds"]],
            )
            for one in rows
        ],
    )
    rewrite("score", text)
    print(text)


if __name__ == "__main__":
    main()
