"""Set before anything is imported: no network, one thread, shapes checked at run time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TERM"] = "dumb"
# Workers share the cores: two processes with two threads each are slower than with one.
os.environ["OMP_NUM_THREADS"] = "1"
# Stores of windows made by tests do not belong in the user's cache; recordings fetched into it are found all the same.
_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cascade-ops" / "data"
if _cache.is_dir() and not Path("../shared/data").is_dir():
    os.environ.setdefault("CASCADE_DATA_DIR", str(_cache))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cascade-tests-")

from jaxtyping import install_import_hook  # noqa: E402  (the environment comes first)

# Every shape in a cascade_ops signature is checked on every call that a test makes.
install_import_hook("cascade_ops", "beartype.beartype")

import pytest  # noqa: E402

from tests.jobs import TINY  # noqa: E402


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, shared: do not write into it."""
    from workflows import config, job

    out = tmp_path_factory.mktemp("finished") / "run"
    job.start(config.resolve(TINY), out)
    return out
