"""Writing files so that a reader never sees half of one, and reading what was compressed since."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as a whole: a temporary file beside it, flushed to the disk, then renamed over it.

    Missing folders are made. After an error the old file, if any, is as it was and no temporary file is left.

    Raises:
        OSError: if the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


GZIP = b"\x1f\x8b"
"""First bytes of a file that gzip compressed (RFC 1952, section 2.3.1)."""

LARGEST_DOCUMENT = 2**28
"""Bytes of the largest document that is decompressed: some forty times what the standard matrix has."""


def read_document(path: Path) -> bytes:
    """A file's bytes, decompressed if gzip compressed them.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if what is compressed is damaged, or larger than `LARGEST_DOCUMENT`.
    """
    data = path.read_bytes()
    if not data.startswith(GZIP):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            document = file.read(LARGEST_DOCUMENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name}: got a damaged gzip file ({error}), accepted is a whole one") from error
    if len(document) > LARGEST_DOCUMENT:
        accepted = f"accepted are at most {LARGEST_DOCUMENT}"
        raise ValueError(f"{path.name}: got a gzip file of more than {LARGEST_DOCUMENT} bytes, {accepted}")
    return document
