"""pydantic's findings as one line that says where, what was found and what would do."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from cascade_ops.errors import ConfigError

_OWN = "config"


def keep_location(value: Any, handler: Callable[[Any], Any]) -> Any:
    """A pydantic wrap validator: a ConfigError raised inside comes out with the place where it arose."""
    try:
        return handler(value)
    except ConfigError as error:
        raise PydanticCustomError(_OWN, "{message}", {"message": str(error)}) from None


def located_message(error: ValidationError, kind: type) -> str:
    """The first finding as ``a.b.0: what``; the number of the others at the end."""
    findings = error.errors()
    # A misspelt key explains the key that is missing.
    findings.sort(key=lambda finding: "unexpected" not in finding["type"] and "extra" not in finding["type"])
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return _message(findings[0], kind) + more


def _message(finding: ErrorDetails, kind: type) -> str:
    where = ".".join(map(str, finding["loc"]))
    match finding["type"]:
        case "config":
            message = finding["ctx"]["message"]
            # "ratio: must be …" continues the location, "must be …" ends it.
            joint = "." if ":" in message and " " not in message.split(":")[0].replace(", ", ",") else ": "
            return f"{where}{joint}{message}" if where else message
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _keys(kind, finding["loc"][:-1])
            return f"{where}: unknown key.{_did_you_mean(str(finding['loc'][-1]), known)} Known: {', '.join(known)}."
        case "missing" | "missing_keyword_only_argument":
            return f"{where}: is required"
        case "enum" | "literal_error":
            expected = finding["ctx"]["expected"]
            known = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
            hint = _did_you_mean(str(finding["input"]), known)
            return f"{where}: must be {expected}, got {finding['input']!r}.{hint}"
        case "dataclass_type":
            return (
                f"{where or 'configuration'}: must be a mapping of keys to values, got {finding['input']!r}"
            )
        case _:
            what = finding["msg"].replace("Input should be", "must be")
            return f"{where}: {what}, got {finding['input']!r}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _keys(kind: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys that a configuration has at ``path``."""
    kind = _plain(kind)
    if not path:
        return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    if isinstance(path[0], int):
        return _keys(get_args(kind)[0], path[1:])
    return _keys(get_type_hints(kind, include_extras=True)[path[0]], path[1:])


def _plain(kind: Any) -> Any:
    """Without ``Annotated`` and ``| None``."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return _plain(next(option for option in get_args(kind) if option is not type(None)))
    return kind
