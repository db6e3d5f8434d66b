"""A config as one layer sees it."""

from __future__ import annotations

from typing import Any


class LayerConfig:
    """The model's live config, except for these fields: for modules that read their shape from it on each call."""

    def __init__(self, config: Any, **own: object) -> None:
        self._config = config
        self.own = own
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        # While being copied or unpickled there is nothing to look into yet.
        if name.startswith("__") or "_config" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._config, name)
