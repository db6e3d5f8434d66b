"""Steps known by what they were made from, and checked by what they hold.

A finished step has a ``manifest.json``, written last: the key, what the key was made of, and the size and
SHA-256 of every file. The key is the SHA-256 of those inputs: versions, data, exactly the part of the
configuration that the step depends on, and the *content* of the steps before it. So a step made from
anything else has another key and is not taken, and one that was made again bit by bit leaves the steps after
it valid. Where things are (folders, clusters) is not part of a key: what they hold is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cascade_ops.errors import CheckpointError
from cascade_ops.progress import Progress, silent
from cascade_ops.schedule import CascadeSchedule
from cascade_ops.serde import to_jsonable
from workflows.config import JobConfig
from workflows.origin import Origin, key_of, sha256_of
from workflows.rundir import DENSE, RunDir, read_json, write_json

MANIFEST = "manifest.json"
SCHEMA = "cascade.artifact/1"
KEYS = 2
"""Version of what keys are made of."""

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file as it should be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a step is. ``files`` are by POSIX path relative to its folder."""

    key: str
    inputs: Inputs
    files: dict[str, FileRecord]

    @property
    def content(self) -> str:
        """Digest of the step's model, which is all that later steps see of it."""
        model = {path: record.sha256 for path, record in self.files.items() if path.startswith("model/")}
        return key_of(model)


def step_names(schedule: CascadeSchedule) -> tuple[str, ...]:
    """Step folders in order."""
    stages = (f"{index + 1:02d}-{stage.granularity.value}" for index, stage in enumerate(schedule.stages))
    return (DENSE, *stages)


def dense_inputs(config: JobConfig, origin: Origin) -> Inputs:
    """What the dense model depends on."""
    model = {k: v for k, v in to_jsonable(config.model).items() if k not in ("path", "tokenizer")}
    return {**_common("dense", config, origin), "model": model, "train": to_jsonable(config.train)}


def stage_inputs(
    config: JobConfig, schedule: CascadeSchedule, index: int, origin: Origin, *, dense: str, previous: str
) -> Inputs:
    """What stage ``index`` depends on, beside the content of the dense and of the previous model.

    Shares and the whole budget matter only by the steps that they give this stage, and how to train only if there
    are any.
    """
    stage, recovery = to_jsonable(schedule.stages[index]), to_jsonable(schedule.recovery)
    del stage["share"], recovery["steps"]
    if not schedule.steps()[index]:
        recovery = {name: recovery[name] for name in ("compensation", "ridge")}
    one_shot = None if schedule.rescore else [one.criterion for one in schedule.stages]
    return {
        **_common("stage", config, origin),
        "index": index,
        "stage": stage,
        "steps": schedule.steps()[index],
        "recovery": recovery,
        "recovering": config.recovering.numerics() if schedule.steps()[index] else None,
        "one_shot": one_shot,
        "dense": dense,
        "previous": previous,
    }


def final_inputs(previous: str, origin: Origin) -> Inputs:
    """What the run's compressed model depends on: the last step."""
    return {"keys": KEYS, "kind": "final", "versions": origin.versions, "previous": previous}


def _common(kind: str, config: JobConfig, origin: Origin) -> Inputs:
    data = {k: v for k, v in to_jsonable(config.data).items() if k not in ("path", "train", "test")}
    return {
        "keys": KEYS,
        "kind": kind,
        "versions": origin.versions,
        "task": config.task,
        "seed": config.seed,
        "threads": config.threads,
        "device": config.device,
        "data": {**data, "fingerprint": origin.data},
        "weights": origin.weights if kind == "dense" else None,
        "tokenizer": origin.tokenizer,
    }


def seal(folder: Path, inputs: Inputs, *, progress: Progress = silent) -> Manifest:
    """Write the manifest of a folder that is otherwise finished. Every file is on the disk before it is."""
    files = {}
    for path in _files(folder):
        digest = sha256_of(path, progress=progress, flush=True)
        files[path.relative_to(folder).as_posix()] = FileRecord(sha256=digest, bytes=path.stat().st_size)
    manifest = Manifest(key=key_of(inputs), inputs=inputs, files=files)
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of a step."""
    write_json(folder / MANIFEST, {"schema": SCHEMA, **to_jsonable(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError, whose message is meant to stand behind the step's name."""
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{MANIFEST} is missing")
    try:
        return parse_manifest(read_json(folder / MANIFEST))
    except CheckpointError:
        raise CheckpointError(f"{MANIFEST} is damaged") from None


def parse_manifest(document: Any) -> Manifest:
    """Raises CheckpointError where it is none, contradicts itself, or names files outside its folder."""
    try:
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r}")
        files = {
            str(path): FileRecord(sha256=str(entry["sha256"]), bytes=int(entry["bytes"]))
            for path, entry in document["files"].items()
        }
        outside = [p for p in files if PurePosixPath(p).is_absolute() or ".." in PurePosixPath(p).parts]
        if outside:
            raise ValueError(f"a file outside: {outside[0]}")
        manifest = Manifest(key=str(document["key"]), inputs=dict(document["inputs"]), files=files)
        if key_of(manifest.inputs) != manifest.key:
            raise ValueError("the key is not that of the inputs")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"expected a manifest of schema {SCHEMA!r} ({error})") from error
    return manifest


def verified(folder: Path, inputs: Inputs, *, progress: Progress = silent) -> Manifest:
    """The manifest of a folder that was made from ``inputs`` and holds what it should, byte by byte.

    Raises:
        CheckpointError: it was not or does not; the message is meant to stand behind the step's name.
    """
    manifest = read_manifest(folder)
    if manifest.key != key_of(inputs):
        names = ", ".join(sorted(_differing(manifest.inputs, inputs))[:3])
        raise CheckpointError(f"was made from something else ({names})")
    for name, record in manifest.files.items():
        check_file(folder, name, record, progress=progress)
    unknown = {path.relative_to(folder).as_posix() for path in _files(folder)} - set(manifest.files)
    if unknown:
        raise CheckpointError(f"{min(unknown)} does not belong there")
    return manifest


def check_file(folder: Path, name: str, record: FileRecord, *, progress: Progress = silent) -> None:
    """Raises CheckpointError where ``name`` is not the file that was recorded."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{name} is missing")
    found = path.stat().st_size
    if found != record.bytes:
        raise CheckpointError(f"{name} is damaged ({found:,} bytes, expected {record.bytes:,})")
    try:
        digest = sha256_of(path, progress=progress)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror or error})") from error
    if digest != record.sha256:
        raise CheckpointError(f"{name} is damaged (checksum)")


def is_sound(
    run: RunDir, config: JobConfig, schedule: CascadeSchedule, origin: Origin, progress: Progress
) -> bool:
    """Whether a run is complete and holds what it should, by the versions that made it."""
    if not run.complete:
        return False
    try:
        read_json(run.report)
        dense = verified(run.step(DENSE), dense_inputs(config, origin), progress=progress).content
        content = dense
        for index, name in enumerate(step_names(schedule)[1:]):
            inputs = stage_inputs(config, schedule, index, origin, dense=dense, previous=content)
            content = verified(run.step(name), inputs, progress=progress).content
        verified(run.model, final_inputs(content, origin), progress=progress)
    except CheckpointError:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    """All but the manifest and hidden ones (file managers and network file systems leave some)."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in found if path != folder / MANIFEST)


def _differing(old: Any, new: Any, prefix: str = "") -> set[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        parts = (_differing(old.get(k), new.get(k), f"{prefix}{k}.") for k in old.keys() | new.keys())
        return set().union(*parts)
    return set() if old == new else {prefix.rstrip(".")}
