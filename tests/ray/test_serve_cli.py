"""``cascade serve`` as a person runs it: an address once it is ready; told to end, it first answers what it has."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import torch

from tests.ray.asking import ask, body, offline, probabilities, unseen_windows

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
        "--set",
        "loaded=1",
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
        assert one_at_a_time(told["url"], finished)
        windows = unseen_windows(1000).ravel().tolist()
        slow = {
            "model": "dense",
            "recordings": [{"signal": windows, "fs_hz": 12000, "preprocessed": True}] * 2,
        }
        content = json.dumps(slow).encode()
        answers: list[tuple[float, requests.Response]] = []

        def ask() -> None:
            kind = {"content-type": "application/json"}
            answer = requests.post(f"{told['url']}/v1/diagnose/batch", data=content, headers=kind)
            answers.append((time.monotonic(), answer))

        asking = threading.Thread(target=ask)
        asking.start()
        in_hand(told["url"])
        ended = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        asking.join(30)
        ((when, answer),) = answers
        assert when > ended, "nothing was in hand: it was not drained"
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == 2
        assert server.wait(30) == 0


def one_at_a_time(url: str, run: Path) -> bool:
    """With room for one model, both answer rightly, asked in turn and at once, and one is in memory afterwards."""
    windows = unseen_windows(40)
    names = ["small", "dense"] * 20
    answers = asyncio.run(
        ask(url, [body(window, name) for window, name in zip(windows, names, strict=True)], 4)
    )
    found = probabilities(answers)
    for first, folder in enumerate(("model", "steps/00-dense/model")):
        expected = offline(run / folder, windows)[first::2]
        assert torch.allclose(found[first::2], expected, atol=1e-5)
    loaded = [model["loaded"] for model in requests.get(f"{url}/v1/models").json()["data"]]
    return loaded.count(True) == 1


def in_hand(url: str, patience: float = 20.0) -> None:
    """Returns while a request is being answered."""
    deadline = time.monotonic() + patience
    while not re.search(r"cascade_in_hand\{.*\} [1-9]", requests.get(f"{url}/metrics").text):
        assert time.monotonic() < deadline
