"""What a run starts from, by content: a path may be the same while what it leads to has changed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cascade_ops.checkpoint import read_config
from cascade_ops.errors import ConfigError
from cascade_ops.progress import Progress, silent
from cascade_ops.weights import weight_files
from workflows.config import JobConfig
from workflows.hub import TOKENIZER, locate
from workflows.rundir import DENSE, PROVENANCE, RunDir, read_json

BIG = 64 * 2**20
"""Bytes of a file that is worth a progress bar."""
CHUNK = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Data, pretrained weights and tokenizer (None: none), and the versions of the code that does the work."""

    data: str
    weights: str | None = None
    tokenizer: str | None = None
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Those that a step's weights depend on."""
    return {"cascade-ops": version("cascade-ops"), "torch": torch.__version__}


def origin_of(
    config: JobConfig, data_fingerprint: str, *, weights: str | None = None, progress: Progress = silent
) -> Origin:
    """What ``config`` starts from now; ``weights`` where it is known already.

    Raises:
        UsageError, CheckpointError: the weights or the tokenizer are not there.
    """
    model = config.model
    if weights is None and model.path is not None:
        weights = weights_fingerprint(locate(model.path), progress=progress)
    reads_text = config.task == "lm" or model.front_end == "text"
    tokenizer = model.tokenizer or model.path
    return Origin(
        data=data_fingerprint,
        weights=weights,
        tokenizer=_tokenizer_fingerprint(tokenizer) if reads_text and tokenizer is not None else None,
        versions=versions(),
    )


def weights_fingerprint(folder: Path, *, progress: Progress = silent) -> str:
    """Of a model folder: its configuration and its weights. Raises CheckpointError."""
    read_config(folder)
    files = [folder / "config.json", *weight_files(folder)]
    return key_of({file.name: sha256_of(file, progress=progress) for file in files})


def _tokenizer_fingerprint(source: str) -> str:
    folder = locate(source, what="tokenizer", files=TOKENIZER)
    names = {file.name for pattern in TOKENIZER for file in folder.glob(pattern)}
    ignored = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    return key_of({name: sha256_of(folder / name) for name in sorted(names - ignored)})


def recorded_origin(run: RunDir) -> Origin:
    """What a run says it started from. Raises CheckpointError."""
    found = read_json(run.path / PROVENANCE)
    used = found.get("versions") or {}
    return Origin(
        data=str(found.get("data_fingerprint")),
        weights=found.get("weights_fingerprint"),
        tokenizer=found.get("tokenizer_fingerprint"),
        versions={name: str(used.get(name)) for name in versions()},
    )


def same_origin(
    run: RunDir,
    config: JobConfig,
    recorded: Origin,
    data_fingerprint: str,
    progress: Progress,
    *,
    now: Origin | None = None,
) -> Origin:
    """What the run started from, with today's versions; ``now`` where that is known already.

    Raises:
        ConfigError: it has changed since.
    """
    kept = None
    if config.model.path is not None and run.step(DENSE).is_dir() and not Path(config.model.path).exists():
        kept = recorded.weights  # the run has a copy of its own
    found = now or origin_of(config, data_fingerprint, weights=kept, progress=progress)
    for what, old, new in (
        ("data", recorded.data, found.data),
        ("weights", recorded.weights, found.weights),
        ("tokenizer files", recorded.tokenizer, found.tokenizer),
    ):
        if old != new:
            raise ConfigError(
                f"{run.path}: was started on other {what} (fingerprint {old}, found {new}). "
                "Restore them, or start a new run."
            )
    return found


def key_of(inputs: dict[str, Any]) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path, *, progress: Progress = silent, flush: bool = False) -> str:
    """Of a file, read piece by piece; ``flush`` waits until it is on the disk."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        size = path.stat().st_size
        while piece := stream.read(CHUNK):
            digest.update(piece)
            done += len(piece)
            if size >= BIG:
                progress(f"checksum {path.name}", done >> 20, size >> 20)
    return digest.hexdigest()
