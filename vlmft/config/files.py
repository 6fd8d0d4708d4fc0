"""Files that appear whole or not at all, and lines that do; files that lock."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so nobody is refused or waits there
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[str]) -> None:
    """Locks an open file until it is closed, or its process ends, however that ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: no locks on this file system.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a JSONL file that can be gone on with, and the file mended: a last line without its newline was torn
    and is cut off, unless it is whole JSON, as an editor may leave it."""
    data = path.read_bytes() if path.exists() else b""
    lines, tail = data.split(b"\n")[:-1], data.rpartition(b"\n")[2]
    if not tail:
        return lines
    try:
        json.loads(tail)
    except ValueError:
        os.truncate(path, len(data) - len(tail))
        return lines
    append_synced(path, b"\n")
    return [*lines, tail]


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


def source_files(kind: type) -> set[Path]:
    """The files in which a class and those that it inherits from are written."""
    found = {getattr(sys.modules.get(one.__module__), "__file__", None) for one in kind.__mro__}
    return {Path(name) for name in found if name}


def contents_sha256(files: Iterable[Path]) -> str:
    """Hash of what stands in these files, by their names' order."""
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sorted(files))).hexdigest()
