"""Splits on disk, downloads from a local server, and the command line."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.server
import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cascade_ops.data import DATASETS, Dataset, SplitData, make_split
from cascade_ops.data.fetch import fetch
from cascade_ops.data.readers.base import RemoteFile
from cascade_ops.data.store import load_split, save_split
from cascade_ops.data.windows import SIDES
from cascade_ops.errors import DataError, DownloadError, RunExistsError, UnknownNameError, UsageError


@pytest.fixture(scope="module")
def split(simulated: Dataset) -> SplitData:
    return make_split(simulated, split="load:3", classes=("N", "IR"), stride=512)


def test_a_split_comes_back_as_it_was(split: SplitData, tmp_path: Path):
    folder = save_split(split, tmp_path / "deep" / "windows", shard_windows=100)
    found = load_split(folder)
    assert (found.name, found.notes) == (split.name, split.notes)
    for side in SIDES:
        before, after = getattr(split, side), getattr(found, side)
        for column in ("signal", "label", "recording", "start", "rpm"):
            np.testing.assert_array_equal(getattr(after, column), getattr(before, column))
            assert getattr(after, column).dtype == getattr(before, column).dtype
        assert (after.classes, after.recordings, after.fs_hz) == (
            before.classes,
            before.recordings,
            before.fs_hz,
        )
    shards = sorted(folder.glob("train-*.parquet"))
    assert len(shards) == -(-len(split.train) // 100)
    assert pq.read_table(shards[0]).num_rows == 100
    assert [path.name for path in tmp_path.joinpath("deep").iterdir()] == ["windows"]


def test_an_existing_folder_is_kept_unless_told(split: SplitData, tmp_path: Path):
    folder = save_split(split, tmp_path / "w")
    with pytest.raises(RunExistsError, match="already"):
        save_split(split, folder)
    save_split(dataclasses.replace(split, name="again"), folder, overwrite=True)
    assert load_split(folder).name == "again"
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunExistsError, match="no stored split"):
        save_split(split, tmp_path / "mine", overwrite=True)


def test_a_file_that_outgrows_its_limit_leaves_nothing(split: SplitData, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match=r"expected to store about \d+ MiB .* Nothing was kept"):
            save_split(split, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_the_old_split(
    split: SplitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = save_split(split, tmp_path / "w")
    write, calls = pq.write_table, []

    def full(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DataError, match="No space left on device"):
        save_split(split, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert load_split(folder).name == split.name


def test_damage_is_found_on_loading(split: SplitData, tmp_path: Path):
    with pytest.raises(DataError, match="expected a stored split"):
        load_split(tmp_path)
    folder = save_split(split, tmp_path / "w")
    shard = folder / "test-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"test-00000\.parquet: expected sha256"):
        load_split(folder)
    shard.unlink()
    with pytest.raises(DataError, match="found no file"):
        load_split(folder)
    (folder / "split.json").write_text(json.dumps({"schema": "cascade.split/9"}))
    with pytest.raises(DataError, match=r"cascade\.split/9"):
        load_split(folder)
    (folder / "split.json").write_text("{")
    with pytest.raises(DataError, match="expected JSON"):
        load_split(folder)


# -- fetching --------------------------------------------------------------------------------------

CONTENT = {f"{name}.mat": np.random.default_rng(name).bytes(300_000) for name in (1, 2, 3)}


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT with ranges; ``cut`` breaks transfers off, ``corrupt`` changes a byte."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str]] = []
        self.cut = 0
        self.corrupt = ""
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.requests.append((name, asked))
        if name not in CONTENT:
            self.send_error(404, "Not Found")
            return
        content = CONTENT[name]
        if name == self.server.corrupt:
            content = b"!" + content[1:]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416, "Range Not Satisfiable")
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            self.wfile.write(content[start : start + 80_000])
            return
        self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    files = tuple(
        RemoteFile(file=name, sha256=hashlib.sha256(content).hexdigest(), remote=name)
        for name, content in CONTENT.items()
    )
    monkeypatch.setitem(DATASETS._entries, "cwru", dataclasses.replace(DATASETS["cwru"], files=files))
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def here(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetch_downloads_verifies_and_skips_what_is_here(server: Server, tmp_path: Path):
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch("cwru", root=tmp_path, base_url=server.url, progress=lambda *report: seen.append(report))
    assert folder == tmp_path / "cwru"
    assert here(folder) == CONTENT
    assert seen[-1] == ("3.mat", 300_000, 300_000)
    assert [done for name, done, _ in seen if name == "1.mat"] == sorted(
        done for name, done, _ in seen if name == "1.mat"
    )
    (folder / "2.mat").write_bytes(b"damaged")
    server.requests.clear()
    fetch("cwru", root=tmp_path, base_url=server.url + "/")
    assert server.requests == [("2.mat", "")]
    assert here(folder) == CONTENT


def test_an_interrupted_transfer_goes_on_where_it_ended(server: Server, tmp_path: Path):
    server.cut = 1
    fetch("cwru", root=tmp_path, base_url=server.url)
    assert server.requests[:2] == [("1.mat", ""), ("1.mat", "bytes=80000-")]
    assert here(tmp_path / "cwru") == CONTENT


def test_a_later_run_resumes_what_an_earlier_one_left(server: Server, tmp_path: Path):
    server.cut = 3  # every attempt of the first run
    with pytest.raises(DownloadError, match=r"resume.*1\.mat, 2\.mat, 3\.mat"):
        fetch("cwru", root=tmp_path, base_url=server.url)
    assert not (tmp_path / "cwru" / "1.mat").exists()
    partial = (tmp_path / "cwru" / "1.mat.part").stat().st_size
    assert partial == 240_000
    server.requests.clear()
    fetch("cwru", root=tmp_path, base_url=server.url)
    assert server.requests[0] == ("1.mat", f"bytes={partial}-")
    assert here(tmp_path / "cwru") == CONTENT


def test_a_complete_part_file_is_used_and_a_wrong_one_is_not(server: Server, tmp_path: Path):
    folder = tmp_path / "cwru"
    folder.mkdir()
    (folder / "1.mat.part").write_bytes(CONTENT["1.mat"])
    (folder / "2.mat.part").write_bytes(b"x" * 300_000)
    fetch("cwru", root=tmp_path, base_url=server.url)
    assert here(folder) == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path):
    server.ranges = False
    (tmp_path / "cwru").mkdir()
    (tmp_path / "cwru" / "1.mat.part").write_bytes(b"old start")
    fetch("cwru", root=tmp_path, base_url=server.url)
    assert here(tmp_path / "cwru") == CONTENT


def test_a_corrupt_file_is_discarded(server: Server, tmp_path: Path):
    server.corrupt = "2.mat"
    with pytest.raises(DownloadError, match=r"2\.mat: expected sha256 .* discarded"):
        fetch("cwru", root=tmp_path, base_url=server.url)
    assert sorted(here(tmp_path / "cwru")) == ["1.mat"]


def test_a_missing_file_on_the_server(server: Server, tmp_path: Path):
    with pytest.raises(DownloadError, match="Not Found"):
        fetch("cwru", root=tmp_path, base_url=server.url + "/elsewhere")


def test_without_a_network_the_message_tells_what_to_put_where(server: Server, tmp_path: Path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as caught:
        fetch("cwru", root=tmp_path, base_url=server.url, timeout_s=2.0)
    text = str(caught.value)
    assert "1.mat, 2.mat, 3.mat" in text
    assert str(tmp_path / "cwru") in text
    assert server.url in text
    assert "engineering.case.edu" in text


def test_what_cannot_be_fetched(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be downloaded"):
        fetch("jnu", root=tmp_path)
    with pytest.raises(UsageError, match="http or https"):
        fetch("cwru", root=tmp_path, base_url="file:///etc")
    with pytest.raises(UnknownNameError):
        fetch("cwruu", root=tmp_path)


def test_publisher_addresses():
    assert DATASETS["cwru"].base_url == "https://engineering.case.edu/sites/default/files"
    assert DATASETS["cwru"].files[0].remote == "97.mat"
    assert DATASETS["uestc"].files[0].remote == "N_800/N_800_1.mat"


# -- command line ----------------------------------------------------------------------------------


def test_cli_fetch_and_ls(server: Server, tmp_path: Path):
    from workflows.cli.data import app

    runner = CliRunner()
    result = runner.invoke(app, ["fetch", "cwru", "--path", str(tmp_path), "--mirror", server.url])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "cwru")
    result = runner.invoke(app, ["ls", "--json", "--path", str(tmp_path)])
    document = json.loads(result.stdout)
    assert document["schema"] == "cascade.data-ls/1"
    rows = {row["name"]: row for row in document["datasets"]}
    assert rows["simulated"]["complete"] is True
    assert set(rows) == set(DATASETS)
    result = runner.invoke(app, ["ls", "--path", str(tmp_path)])
    assert "always here" in result.stdout


def test_cli_errors_propagate(tmp_path: Path):
    from workflows.cli.data import app

    result = CliRunner().invoke(app, ["fetch", "jnu", "--path", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
