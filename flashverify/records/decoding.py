"""Strict decoding of JSON, with errors that name the file, the field, what came and what is accepted."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0)]

ARRAYS: dict[str, tuple[str, ...]] = {}
"""Columns of the fields that are written as arrays, for messages: filled by the module that defines them."""

NUMBER_WORDS = 'a number, "NaN", "Infinity" or "-Infinity"'

_LONGEST_SHOWN = 60


def decode(data: bytes | str, kind: type[T], source: str) -> T:
    """Decode JSON into a msgspec type; unknown, missing and mistyped fields are errors.

    Raises:
        ValueError: naming the source, the field, what came and what is accepted.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: got bytes that are not UTF-8 ({error.reason}), accepted is JSON in UTF-8") from error
    except msgspec.ValidationError as error:
        raise ValueError(f"{source}: {_explain(str(error), data, kind)}") from error
    except msgspec.DecodeError as error:
        raise ValueError(f"{source}: got text that is not JSON ({error}), accepted is a whole JSON document") from error


def _explain(message: str, data: bytes | str, kind: type) -> str:
    """The library's message as "field ...: got ..., accepted is ..."."""
    problem, _, place = message.partition(" - at `")
    found = re.findall(r"\[(\d+)\]|\.?([A-Za-z_$][\w$]*|\[\.\.\.\])", place.rstrip("`"))
    steps: list[str | int] = [int(index) if index else name for index, name in found][1:]
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        return f"field {_field([*steps, missing[1]])}: got nothing, accepted is a value: the field is required"
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", problem)
    if unknown:
        known = ", ".join(_schema_at([*steps], kind).get("properties", ()))
        return f"field {_field([*steps, unknown[1]])}: got {_shown([*steps, unknown[1]], data)}, accepted are {known}"
    accepted = re.sub(r"^Expected |, got .*$", "", problem).replace("`float | str`", NUMBER_WORDS).replace("`", "")
    if problem.startswith("Invalid enum value"):
        part = _schema_at(steps, kind)
        words = " or ".join(str(word) for word in sorted(part.get("enum", ())))
        accepted = NUMBER_WORDS if "anyOf" in part else words
    return f"field {_field(steps)}: got {_shown(steps, data)}, accepted is {accepted}"


def _schema_at(steps: list[str | int], kind: type) -> dict[str, Any]:
    """The part of a type's JSON Schema that a path leads to, or an empty one."""
    root = msgspec.json.schema(kind)
    part: Any = root
    for step in [*steps, None]:
        while "$ref" in part:
            part = root["$defs"][part["$ref"].rpartition("/")[2]]
        options = [option for option in part.get("anyOf", ()) if "$ref" in option]
        if step is None:
            break
        if options:
            part = root["$defs"][options[0]["$ref"].rpartition("/")[2]]
        if isinstance(step, int):
            columns = part.get("prefixItems", ())
            part = columns[step] if step < len(columns) else part.get("items", {})
        else:
            part = part.get("properties", {}).get(step, {})
    return dict(part)


def _field(steps: list[str | int]) -> str:
    """A readable path: positions inside arrays of known columns become the columns' names."""
    path = ""
    columns: tuple[str, ...] = ()
    name = ""
    for step in steps:
        if isinstance(step, int) and columns and not path.endswith(name + "[]"):
            label = columns[step] if step < len(columns) else str(step)
            path += f".{label}"
            name, columns = label, ARRAYS.get(label, ())
        elif isinstance(step, int):
            path += f"[{step}]"
            columns = ARRAYS.get(f"{name}[]", ())
        else:
            path += f".{step}"
            name, columns = step, ARRAYS.get(step, ())
    return path.lstrip(".") or "(the whole document)"


def _shown(steps: list[str | int], data: bytes | str) -> str:
    """What stands in the field, shortened."""
    try:
        found: Any = msgspec.json.decode(data)
        for step in steps:
            found = found[step]
    except (msgspec.MsgspecError, LookupError, TypeError):
        return "something else"
    text = msgspec.json.encode(found).decode()
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
