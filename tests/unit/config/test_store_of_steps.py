"""A store gives back what was published, whole, or nothing; several publishers do no harm."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cascade_ops.errors import CheckpointError, ConfigError
from workflows.artifacts import Manifest, seal, verified
from workflows.rundir import RunDir
from workflows.store import Store, give, open_store, take

INPUTS = {"kind": "dense", "seed": 0}


@pytest.fixture(params=["memory", "folder", "file URL"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    urls = {
        "memory": f"memory://{uuid4().hex}",
        "folder": str(tmp_path / "a" / "store"),
        "file URL": f"file://{tmp_path}/b",
    }
    return open_store(urls[request.param])


def made(folder: Path, record: str = "{}") -> tuple[Path, Manifest]:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "result.json").write_text(record)
    return folder, seal(folder, INPUTS)


def blob(store: Store, manifest: Manifest) -> str:
    name = manifest.files["model/model.safetensors"].sha256
    return f"{store.root}/{manifest.key}/files/{name}"


def test_there_and_back(store: Store, tmp_path: Path) -> None:
    folder, manifest = made(tmp_path / "step")
    assert store.find(manifest.key) is None
    store.publish(folder, manifest)
    store.publish(folder, manifest)
    (tmp_path / "copy").mkdir()
    found = store.find(manifest.key)
    assert found == manifest
    store.fetch(found, tmp_path / "copy")
    assert verified(tmp_path / "copy", INPUTS) == manifest


def test_without_a_manifest_it_does_not_exist(store: Store, tmp_path: Path) -> None:
    folder, manifest = made(tmp_path / "step")
    store.publish(folder, manifest)
    store.files.rm_file(f"{store.root}/{manifest.key}/manifest.json")
    assert store.find(manifest.key) is None
    store.publish(folder, manifest)
    assert store.find(manifest.key) == manifest


@pytest.mark.parametrize("content", [b"weights", b"wEights" * 1000, None], ids=["short", "other", "missing"])
def test_damage_is_found_and_mended(content: bytes | None, store: Store, tmp_path: Path) -> None:
    folder, manifest = made(tmp_path / "step")
    store.publish(folder, manifest)
    store.files.rm_file(blob(store, manifest))
    if content is not None:
        store.files.pipe_file(blob(store, manifest), content)
    run, said = RunDir(path=tmp_path / "run"), []
    assert take(store, manifest.key, run, "00-dense", say=said.append) is None
    assert len(said) == 1
    assert "model/model.safetensors is" in said[0]
    assert not list((run.path / "steps").iterdir()), "something half-fetched was left"
    store.publish(folder, manifest)
    assert take(store, manifest.key, run, "00-dense", say=said.append) == manifest


def test_damaged_manifest(store: Store, tmp_path: Path) -> None:
    folder, manifest = made(tmp_path / "step")
    store.publish(folder, manifest)
    store.files.pipe_file(f"{store.root}/{manifest.key}/manifest.json", b'{"schema"')
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        store.find(manifest.key)
    assert store.find(manifest.key) is None


def test_publishers_at_once(store: Store, tmp_path: Path) -> None:
    """They agree on the weights but not on how long they took."""
    steps = [made(tmp_path / str(i), record=f'{{"seconds": {i}}}') for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: store.publish(*step), steps))
    run = RunDir(path=tmp_path / "run")
    found = take(store, steps[0][1].key, run, "00-dense", say=pytest.fail)
    assert found in [manifest for _, manifest in steps]
    assert verified(run.step("00-dense"), INPUTS) == found


class Broken(MemoryFileSystem):
    """Reads and lists, but its disk is full."""

    protocol = "broken"

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class Gone(MemoryFileSystem):
    """Behind a network that is down."""

    protocol = "gone"

    def exists(self, *args: Any, **kwargs: Any) -> bool:
        raise RuntimeError("host unreachable\nsecond line")


fsspec.register_implementation("broken", Broken, clobber=True)
fsspec.register_implementation("gone", Gone, clobber=True)


@pytest.mark.parametrize(
    ("url", "reason"), [("broken://x", "No space left on device"), ("gone://x", r"host unreachable")]
)
def test_a_store_that_fails_is_said_in_one_line(url: str, reason: str, tmp_path: Path) -> None:
    folder, manifest = made(tmp_path / "00-dense")
    said: list[str] = []
    give(open_store(url), folder, manifest, say=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"00-dense: the store {url} did not take it (")
    assert reason in said[0]
    assert "\n" not in said[0]
    assert verified(folder, INPUTS) == manifest


def test_a_store_out_of_reach_gives_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    assert take(open_store("gone://x"), "k", RunDir(path=tmp_path), "00-dense", say=said.append) is None
    assert said == ["00-dense: the store gone://x could not give it (host unreachable); done here"]


def test_no_such_kind_of_store() -> None:
    with pytest.raises(ConfigError, match="store: expected a folder or an fsspec URL, got 'nope://x'"):
        open_store("nope://x")


def test_a_store_whose_package_is_missing() -> None:
    fsspec.register_implementation("absent", "no_such_package.Files", clobber=True)
    with pytest.raises(ConfigError, match="needs a package that is not installed"):
        open_store("absent://x")
