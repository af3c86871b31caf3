"""A record that is a JSON document of its own: how it is written, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import msgspec

from flashverify.records.decoding import decode
from flashverify.records.files import read_document, write_atomically


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such records share; a kind of them adds its fields, its schema among them."""

    def to_json(self) -> bytes:
        """The JSON document, indented; `from_json` gives the same back."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def from_json(cls, data: bytes | str, source: str | None = None) -> Self:
        """The record back from its JSON document.

        Args:
            data: the document.
            source: what messages call it; by default the kind of record.

        Raises:
            ValueError: if it is no such document; the message names the source, the field, what came and what is accepted.
        """
        return decode(data, cls, source or cls.__name__.lower())

    def write(self, path: Path) -> None:
        """Write the JSON document as a whole.

        Raises:
            OSError: if the folder cannot be written.
        """
        write_atomically(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a JSON document, as it was written or compressed by gzip.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no such document.
        """
        return cls.from_json(read_document(path), path.name)
