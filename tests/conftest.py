"""Set before anything is imported: no network, one thread, shapes checked at run time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TERM"] = "dumb"
# Workers share the cores: two processes with two threads each are slower than with one.
os.environ["OMP_NUM_THREADS"] = "1"

from jaxtyping import install_import_hook

# Every shape in a cascade_ops signature is checked on every call that a test makes.
install_import_hook("cascade_ops", "beartype.beartype")
