"""Files that appear whole or not at all, and lines that do."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a temporary file in the same folder, syncs it, and gives it the name: else what was there stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_synced(path: Path, content: bytes) -> None:
    """Adds whole lines and syncs, so that what is written stays written.

    Raises:
        OSError: such as on a full disk; the file ends where it ended before.
    """
    data = memoryview(content)
    with path.open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            while data:
                data = data[stream.write(data) :]
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise
