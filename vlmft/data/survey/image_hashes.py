"""The pixel hash of each image file, computed once for each content of the file and stored.

Only good images are stored, by path, size and mtime; files that cannot be decoded are tried again at each start. The
store is a SQLite file: it survives a kill at any moment, and several processes may write it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import PIL

from vlmft.data import images
from vlmft.data.images import open_image
from vlmft.data.progress import Progress
from vlmft.data.survey import near_duplicates
from vlmft.data.survey.cache import cache_folder, sha256, stamp, tell
from vlmft.data.survey.near_duplicates import look
from vlmft.sample import BadRowError, pixels_sha256

FILES_AT_ONCE, MOST_THREADS = 256, 8
LOCK_SECONDS = 30.0
TABLE = "images (path BLOB PRIMARY KEY, stamp TEXT, sha256 BLOB, crc INTEGER) WITHOUT ROWID"
Stamp = tuple[int, int, int, int]
Result = TypeVar("Result")


def image_hashes(paths: Sequence[str], poll: Callable[[], None] = lambda: None) -> list[bytes | str]:
    """For each file its `LOOK`, or why it cannot be decoded. `poll` is called now and then."""
    if not paths:
        return []
    store, marks = Store(), [stamp(path) for path in paths]
    found: list[bytes | str | None] = [*store.known(paths, marks)]
    missing = [place for place, known in enumerate(found) if known is None]
    with (
        ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool,  # Pillow and hashlib let threads run
        Progress("images checked", len(missing)) as progress,
    ):
        for start in range(0, len(missing), FILES_AT_ONCE):
            poll()
            some = missing[start : start + FILES_AT_ONCE]
            for place, result in zip(some, pool.map(pixel_hash, [paths[place] for place in some]), strict=True):
                found[place] = result
                progress.advance()
            store.keep([(paths[place], marks[place], found[place]) for place in some])
    return [known for known in found if known is not None]


def pixel_hash(path: str) -> bytes | str:
    """Its `LOOK`, 72 bytes, or the reason why there is none."""
    try:
        return look(open_image(Path(path)))
    except BadRowError as error:
        return str(error)


class Store:
    """The hashes under one image policy and one Pillow. A store that cannot be used is an empty one."""

    def __init__(self) -> None:
        code = inspect.getsource(images) + inspect.getsource(near_duplicates) + inspect.getsource(pixels_sha256)
        folder = cache_folder()
        self.file = None if folder is None else folder / f"images-{sha256(PIL.__version__, TABLE, code)}.sqlite"

    def known(self, paths: Sequence[str], marks: Sequence[Stamp | None]) -> list[bytes | None]:
        """The hash of each file that is stored with exactly this stamp, else None."""

        def look(connection: sqlite3.Connection) -> list[bytes | None]:
            return [_stored(connection, path, mark) for path, mark in zip(paths, marks, strict=True)]

        return self._do(look) or [None] * len(paths)

    def keep(self, found: Sequence[tuple[str, Stamp | None, bytes | str | None]]) -> None:
        """Stores those that have a stamp and a hash."""
        rows = [
            (os.fsencode(path), str(mark), digest, _checksum(path, mark, digest))
            for path, mark, digest in found
            if mark is not None and isinstance(digest, bytes)
        ]
        self._do(lambda connection: connection.executemany("REPLACE INTO images VALUES (?, ?, ?, ?)", rows))

    def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Runs `work` in one transaction; None where the store cannot be used, which is printed."""
        if self.file is None:
            return None
        try:
            with contextlib.closing(sqlite3.connect(self.file, LOCK_SECONDS)) as connection, connection:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
                return work(connection)
        except sqlite3.OperationalError as error:  # locked, read-only, no room
            tell(f"{self.file} cannot be used ({error}); images are checked without it")
            self.file = None
        except sqlite3.DatabaseError as error:
            tell(f"{self.file} is damaged ({error}) and was deleted")
            for suffix in ("", "-journal"):  # an old journal would be played back into the new file
                Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        return None


def _stored(connection: sqlite3.Connection, path: str, mark: Stamp | None) -> bytes | None:
    query = "SELECT stamp, sha256, crc FROM images WHERE path = ?"
    row = connection.execute(query, (os.fsencode(path),)).fetchone() if mark is not None else None
    if row is None or mark is None or row[0] != str(mark):
        return None
    if row[2] != _checksum(path, mark, row[1]):
        raise sqlite3.DatabaseError(f"the checksum of {path} is wrong")
    return bytes(row[1])


def _checksum(path: str, mark: Stamp, digest: bytes) -> int:
    """SQLite has no checksums: a changed byte would be another picture."""
    return zlib.crc32(os.fsencode(path) + f" {mark} ".encode() + digest)
