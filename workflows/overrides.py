"""``a.b.0.c=value``: one value of a nested document replaced."""

from __future__ import annotations

import copy
from typing import Any

import yaml

from cascade_ops.errors import ConfigError


def apply_override(document: dict[str, Any], setting: str) -> dict[str, Any]:
    """A copy of ``document`` with one value set. Mappings are made on the way, list entries are not.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a path through something that has no parts.
    """
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {setting}: expected key=value, such as schedule.stages.0.ratio=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {setting}: {text!r} is not a YAML value; quote it") from None
    result = copy.deepcopy(document)
    parent: Any = result
    for depth, key in enumerate(keys[:-1]):
        parent = _step(parent, key, ".".join(keys[: depth + 1]))
    _put(parent, keys[-1], value, path.strip())
    return result


def _step(parent: Any, key: str, where: str) -> Any:
    if isinstance(parent, list):
        return parent[_index(parent, key, where)]
    if parent.get(key) is None:
        parent[key] = {}
    child = parent[key]
    if not isinstance(child, (dict, list)):
        raise ConfigError(f"--set {where}: is a value ({child!r}), it has no keys below it")
    return child


def _put(parent: Any, key: str, value: Any, where: str) -> None:
    if isinstance(parent, list):
        parent[_index(parent, key, where)] = value
    else:
        parent[key] = value


def _index(parent: list[Any], key: str, where: str) -> int:
    if not key.isdecimal() or int(key) >= len(parent):
        raise ConfigError(f"--set {where}: expected an index from 0 to {len(parent) - 1}, got {key}")
    return int(key)
