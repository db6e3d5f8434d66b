"""Finished steps kept outside the run, for other runs and for when the machine is lost.

    STORE/<key>/manifest.json      written last: without it there is no artifact
    STORE/<key>/files/<sha256>     its files, named by what they hold

Any fsspec URL will do: a folder, ``s3://bucket/steps``, ``sftp://…``. Because files are named by content, two
runs that publish the same step at once write the same names or different ones, never one over the other.
The store is a cache: whatever goes wrong with it costs work, not the run.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cascade_ops.errors import CheckpointError, ConfigError
from cascade_ops.progress import Progress, silent
from workflows.artifacts import MANIFEST, FileRecord, Manifest, check_file, parse_manifest, write_manifest
from workflows.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of artifacts on some file system.

    ``links``: files pass in and out as hard links where that is possible, so that many runs that share steps take
    the room of one. A file that is damaged in place is then damaged everywhere, which its checksum tells.
    """

    url: str
    files: Any  # fsspec ships no types
    root: str
    links: bool = False

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Nobody else on this file system makes artifact ``key`` meanwhile; elsewhere they may, to no harm.

        The claim goes with the process that holds it.
        """
        if not isinstance(self.files, LocalFileSystem):
            yield
            return
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            lock = os.open(self._at(f".{key}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # a store that cannot be written costs work, not the run
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def find(self, key: str) -> Manifest | None:
        """The manifest of artifact ``key``; None if there is none.

        Raises:
            CheckpointError: it is damaged; it has been withdrawn.
            Exception: whatever the file system raises.
        """
        marker = self._at(key, MANIFEST)
        self.files.invalidate_cache()  # others publish too
        if not self.files.exists(marker):
            return None
        try:
            manifest = parse_manifest(json.loads(self.files.cat_file(marker)))
            if manifest.key != key:
                raise CheckpointError(f"of key {manifest.key}")
        except (ValueError, CheckpointError) as error:
            self.files.rm_file(marker)
            raise CheckpointError(f"{key}/{MANIFEST} is damaged") from error
        return manifest

    def fetch(self, manifest: Manifest, folder: Path, *, progress: Progress = silent) -> None:
        """All files of an artifact into ``folder``, checked, and the manifest. Raises as ``find``."""
        for name, record in manifest.files.items():
            self._fetch_file(manifest.key, name, record, folder, progress)
        write_manifest(folder, manifest)

    def _fetch_file(self, key: str, name: str, record: FileRecord, folder: Path, progress: Progress) -> None:
        source, target = self._at(key, "files", record.sha256), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (self.links and _linked(source, target)):
                self.files.get_file(source, str(target))
            check_file(folder, name, record, progress=progress)
        except (FileNotFoundError, CheckpointError) as error:
            # Withdrawn, so that it is published anew once it has been made again.
            self.files.rm_file(self._at(key, MANIFEST))
            if self.files.exists(source):
                self.files.rm_file(source)
            reason = error if isinstance(error, CheckpointError) else f"{name} is missing"
            raise CheckpointError(f"{key}: {reason}") from error

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Copy a finished step here, unless it is here. Raises whatever the file system raises."""
        self.files.invalidate_cache()
        marker = self._at(manifest.key, MANIFEST)
        if self.files.exists(marker):
            return
        self.files.makedirs(self._at(manifest.key, "files"), exist_ok=True)
        for name, record in manifest.files.items():
            target = self._at(manifest.key, "files", record.sha256)
            if not (self.files.exists(target) and self.files.size(target) == record.bytes):
                self._put(folder / name, target)
        self._put(folder / MANIFEST, marker)

    def _put(self, source: Path, target: str) -> None:
        """Whole or not at all: object stores upload that way, folders need a rename."""
        if not isinstance(self.files, LocalFileSystem):
            self.files.put_file(str(source), target)
            return
        scratch = f"{target}.{uuid.uuid4().hex}.part"
        try:
            if not (self.links and _linked(source, scratch)):
                self.files.put_file(str(source), scratch)
            os.replace(scratch, target)
        finally:
            Path(scratch).unlink(missing_ok=True)

    def _at(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)


def _linked(source: str | Path, target: str | Path) -> bool:
    """Make ``target`` another name of ``source``, if the file system can."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def open_store(url: str, *, links: bool = False) -> Store:
    """The store at ``url``: a path or any fsspec URL.

    Raises:
        ConfigError: no such kind of file system, or its package is not installed.
    """
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"store: {url} needs a package that is not installed: {error}") from error
    except (ValueError, TypeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"store: expected a folder or an fsspec URL, got {url!r} ({reason})") from error
    links = links and isinstance(files, LocalFileSystem)
    return Store(url=url.rstrip("/"), files=files, root=root.rstrip("/"), links=links)


def take(
    store: Store, key: str, run: RunDir, name: str, *, say: Callable[[str], None], progress: Progress = silent
) -> Manifest | None:
    """Step ``name`` of ``run`` from the store; None where it is not there or cannot be had, which is said."""
    try:
        manifest = store.find(key)
        if manifest is None:
            return None
        with run.writing(name) as folder:
            store.fetch(manifest, folder, progress=progress)
    except Exception as error:  # every protocol has errors of its own, and none of them may end the run
        say(f"{name}: the store {store.url} could not give it ({_first_line(error)}); done here")
        return None
    return manifest


def give(store: Store, folder: Path, manifest: Manifest, *, say: Callable[[str], None]) -> None:
    """Publish a step; a store that fails is said and otherwise ignored."""
    try:
        store.publish(folder, manifest)
    except Exception as error:  # as above
        say(
            f"{folder.name}: the store {store.url} did not take it ({_first_line(error)}); kept in the run only"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
