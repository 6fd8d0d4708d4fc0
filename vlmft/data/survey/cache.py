"""A cache of what was computed from files, valid while they do not change. Losing it costs only time.

It is in `$VLMFT_CACHE`, else in `vlmft` below `$HF_HOME`, `$XDG_CACHE_HOME` or `~/.cache`; where none can be written,
nothing is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import PIL

import vlmft.sample
from vlmft.config.files import contents_sha256, lock, source_files

Arrays = Mapping[str, np.ndarray]
FRESH_SECONDS = 2.0
"""A file that changed this recently is not trusted: its next change could have the same time."""
UNUSED_DAYS = 90
LOCK_SECONDS = 30.0
WAIT_SECONDS, QUIET_WAITS = 0.2, 10
TABLE = "kept (key BLOB PRIMARY KEY, mark TEXT, value BLOB, crc INTEGER, used REAL) WITHOUT ROWID"
Result = TypeVar("Result")


@functools.lru_cache(maxsize=8)
def _writable(place: str) -> Path | None:
    folder = Path(place)
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "no permission"
    except (OSError, RuntimeError) as error:  # no home folder, in a container without a user
        reason = getattr(error, "strerror", None) or str(error)
    tell(f"nothing is kept for the next start: {folder} cannot be written ({reason}); set VLMFT_CACHE to a folder")
    return None


def cache_folder() -> Path | None:
    """The folder, created if missing; None where it cannot be written."""
    parent = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _writable(os.environ.get("VLMFT_CACHE") or str(Path(parent) / "vlmft"))


def tell(sentence: str) -> None:
    print(f"data cache: {sentence}", file=sys.stderr, flush=True)


def stamp(path: str | Path) -> tuple[int, int, int, int] | None:
    """(size in bytes, mtime and ctime in nanoseconds, inode); None for no file, or one that changed just now.

    mtime alone is no sign of change: cp -p and archives set it. ctime is the file system's own.
    """
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    fresh = time.time_ns() - found.st_mtime_ns < FRESH_SECONDS * 1e9
    return None if fresh else (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def stamps(files: Sequence[Path]) -> tuple[str, ...] | None:
    """Each file with its stamp; None where one has none."""
    found = [(file.absolute(), stamp(file)) for file in files]
    return None if any(mark is None for _, mark in found) else tuple(f"{file} {mark}" for file, mark in found)


def sha256(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()[:32]


@functools.lru_cache(maxsize=64)
def code_of(dataset_class: type) -> str:
    """Hash of the code that turns a file into rows and pixels, and of Pillow's version."""
    return sha256(PIL.__version__, contents_sha256(code_files(dataset_class)))


def code_files(dataset_class: type) -> set[Path]:
    """The code that turns a file into rows and pixels: all of `vlmft/data`, and the class's own."""
    return {*Path(__file__).parents[1].rglob("*.py"), Path(vlmft.sample.__file__), *source_files(dataset_class)}


class Store:
    """One SQLite file: it survives a kill at any moment, and several processes may write it.

    A store that cannot be used is an empty one, which is printed; a damaged one is deleted.
    """

    def __init__(self) -> None:
        folder = cache_folder()
        self.file = None if folder is None else folder / f"kept-{sha256(TABLE)}.sqlite"

    def values(self, keys: Sequence[str], marks: Sequence[str | None]) -> list[bytes | None]:
        """The value of each key that is stored with exactly this mark, else None."""

        def look(connection: sqlite3.Connection) -> list[bytes | None]:
            return [_value(connection, key, mark) for key, mark in zip(keys, marks, strict=True)]

        return self._do(look) or [None] * len(keys)

    def keep(self, found: Sequence[tuple[str, str | None, bytes]]) -> None:
        """Stores (key, mark, value) of those that have a mark."""
        marked = [one for one in found if one[1] is not None]
        rows = [(os.fsencode(key), mark, value, _crc(key, mark, value)) for key, mark, value in marked]
        self._do(lambda connection: connection.executemany("REPLACE INTO kept VALUES (?, ?, ?, ?, NULL)", rows))

    def used(self, key: str) -> None:
        """Notes that a value is in use; deletes noted ones that were not used for `UNUSED_DAYS`."""

        def note(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE kept SET used = ? WHERE key = ?", (time.time(), os.fsencode(key)))
            connection.execute("DELETE FROM kept WHERE used < ?", (time.time() - UNUSED_DAYS * 86_400,))

        self._do(note)

    def names(self, start: str) -> list[str]:
        """The keys that begin like this."""
        query = "SELECT key FROM kept WHERE substr(key, 1, ?) = ?"
        known = (len(os.fsencode(start)), os.fsencode(start))
        return self._do(lambda connection: [os.fsdecode(key) for (key,) in connection.execute(query, known)]) or []

    def forget(self, keys: Sequence[str]) -> None:
        self._do(lambda c: c.executemany("DELETE FROM kept WHERE key = ?", [(os.fsencode(key),) for key in keys]))

    def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result | None:
        """Runs `work` in one transaction; None where the store cannot be used."""
        if self.file is None:
            return None
        try:
            with contextlib.closing(sqlite3.connect(self.file, LOCK_SECONDS)) as connection, connection:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
                return work(connection)
        except (sqlite3.OperationalError, sqlite3.DataError, OverflowError) as error:  # locked, no room, too large
            tell(f"{self.file} cannot be used ({error}); this start does without it")
            self.file = None
        except sqlite3.DatabaseError as error:
            tell(f"{self.file} is damaged ({error}) and was deleted")
            for suffix in ("", "-journal"):  # an old journal would be played back into the new file
                Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        return None


def _value(connection: sqlite3.Connection, key: str, mark: str | None) -> bytes | None:
    query = "SELECT value, crc FROM kept WHERE key = ? AND mark = ?"
    row = connection.execute(query, (os.fsencode(key), mark)).fetchone()
    if row is not None and row[1] != _crc(key, mark, row[0]):
        raise sqlite3.DatabaseError(f"the checksum of {key} is wrong")
    return None if row is None else bytes(row[0])


def _crc(key: str, mark: str | None, value: bytes) -> int:
    """SQLite has no checksums: a changed byte would be another picture."""
    return zlib.crc32(os.fsencode(key) + f" {mark} ".encode() + value)


@contextlib.contextmanager
def one_at_a_time(name: str, poll: Callable[[], None]) -> Iterator[None]:
    """While it lasts, no other process is in it with this name: the others wait and find what this one has stored.

    `poll` is called now and then while waiting. Where there is no folder, or no locks in it, nobody waits.
    """
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError):  # no locks on this file system
                # One of 256 files, so that they do not become more and more: another name only waits needlessly.
                file = stack.enter_context((folder / f"reading-{sha256(name)[:2]}.lock").open("a"))
                _wait_for(file, poll)
        yield


def _wait_for(file: IO[str], poll: Callable[[], None]) -> None:
    """Locks the file as soon as no other process holds it."""
    waits = 0
    while True:
        poll()
        try:
            return lock(file)
        except BlockingIOError:
            waits += 1
            if waits == QUIET_WAITS:
                tell("another process reads rows; waiting for what it finds")
            time.sleep(WAIT_SECONDS)


def kept(name: str, fingerprint: str | None, make: Callable[[], Arrays]) -> Arrays:
    """The result of `make`, cached by name and fingerprint; without a fingerprint nothing is cached."""
    if fingerprint is None:
        return make()
    store = Store()
    (stored,) = store.values([name], [fingerprint])
    if stored is None:
        found, file = make(), io.BytesIO()
        np.savez(file, **found)  # type: ignore[arg-type]
        store.keep([(name, fingerprint, file.getvalue())])
    else:
        found = dict(np.load(io.BytesIO(stored)))
    store.used(name)
    return found
