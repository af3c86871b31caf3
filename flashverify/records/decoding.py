"""Strict decoding of JSON, with errors that name the file, the field, what came and what is accepted."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

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
        raise ValueError(
            f"{source}: got bytes that are not UTF-8 ({error.reason}), accepted is JSON in UTF-8"
        ) from error
    except msgspec.ValidationError as error:
        raise ValueError(f"{source}: {_explain(str(error), data)}") from error
    except msgspec.DecodeError as error:
        raise ValueError(f"{source}: got text that is not JSON ({error}), accepted is a whole JSON document") from error


def _explain(message: str, data: bytes | str) -> str:
    """The library's message as "field: got ..., accepted is ..."."""
    problem, _, place = message.partition(" - at `")
    steps: list[str | int] = [
        int(index) if index else name
        for index, name in re.findall(r"\[(\d+)\]|\.?([A-Za-z_$][\w$]*|\[\.\.\.\])", place.rstrip("`"))
    ][1:]
    accepted = re.sub(r"^Expected ", "", problem)
    accepted = re.sub(r", got .*$", "", accepted).replace("`float | str`", NUMBER_WORDS).replace("`", "")
    if problem.startswith("Invalid enum value"):
        accepted = f"one of the words in the schema ({problem})"
    return f"field {_field(steps)}: got {_shown(steps, data)}, accepted is {accepted}"


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
