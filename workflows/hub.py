"""Models by folder or hub name, as a folder."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from cascade_ops.errors import UsageError

CONFIG_ONLY = ("config.json",)
TOKENIZER = ("*.json", "*.txt", "*.model")
EVERYTHING = (*TOKENIZER, "*.safetensors")
"""No pickles: only safetensors and JSON are ever loaded."""


def locate(name: str, *, what: str = "model", files: Sequence[str] = EVERYTHING) -> Path:
    """The folder ``name``, or the local copy of that hub repository, downloaded if need be.

    Raises:
        UsageError: it is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    online = _online()
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=not online))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (
            str(error).strip().splitlines()[0] if online else "the hub is out of reach, no copy is cached"
        )
        raise UsageError(
            f"unknown {what} {name!r}: no such folder here, and not on the hub: {reason}"
        ) from None


def _online() -> bool:
    """Whether the hub answers; the hub's own client would retry for half a minute to find out."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=3):
            return True
    except OSError:
        return False
