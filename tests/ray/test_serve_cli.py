"""``cascade serve`` as a person runs it: an address once it is ready; told to end, it first answers what it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.ray.asking import unseen_windows

pytestmark = pytest.mark.slow


def test_started_asked_and_ended(finished: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "workflows.cli",
        "serve",
        f"small={finished}",
        "--port",
        "0",
        "--json",
        "-q",
    ]
    log = (tmp_path / "log").open("w+")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        assert server.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = server.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            text += line
        told = json.loads(text)
        assert told["schema"] == "cascade.serve/1"
        assert [model["name"] for model in told["models"]] == ["small", "dense"]
        assert told["url"].startswith("http://127.0.0.1:")
        windows = unseen_windows(1000).ravel().tolist()
        slow = {
            "model": "dense",
            "recordings": [{"signal": windows, "fs_hz": 12000, "preprocessed": True}] * 2,
        }
        content = json.dumps(slow).encode()
        answers: list[requests.Response] = []

        def ask() -> None:
            kind = {"content-type": "application/json"}
            answers.append(requests.post(f"{told['url']}/v1/diagnose/batch", data=content, headers=kind))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.25)
        os.kill(server.pid, signal.SIGTERM)
        asking.join(30)
        assert [answer.status_code for answer in answers] == [200]
        assert len(answers[0].json()["results"]) == 2
        assert server.wait(30) == 0
