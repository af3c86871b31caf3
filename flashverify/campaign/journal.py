"""The journal: one line a record, written as it comes, so that an interrupted campaign loses nothing that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from flashverify.records.measurement import CaseRecord
from flashverify.records.wire import decode_record, encode_record


class Journal:
    """An append-only file of records; a context manager."""

    def __init__(self, path: Path) -> None:
        """Start an empty journal at the path, whose folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb")

    def append(self, record: CaseRecord) -> None:
        """Write one record and hand it to the operating system."""
        self._file.write(encode_record(record).rstrip(b"\n") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read(path: Path) -> Iterator[CaseRecord]:
    """The records of a journal; a last line that was cut short is left out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if another line is no record.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        yield decode_record(line, f"{path.name}:{number}")
