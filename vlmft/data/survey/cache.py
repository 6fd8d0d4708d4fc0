"""A cache of what was computed from files, valid while they do not change. Losing it costs only time.

It is in `$VLMFT_CACHE`, else in `vlmft` below `$HF_HOME`, `$XDG_CACHE_HOME` or `~/.cache`; where none can be written,
nothing is kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL

import vlmft.sample

Arrays = Mapping[str, np.ndarray]
FRESH_SECONDS = 2.0
"""A file that changed this recently is not trusted: its next change could have the same time."""
UNUSED_DAYS = 90
OWN_FILE = re.compile(r"\.?(rows|answers)-[0-9a-f]{32}\.npz(\.\d+\.partial)?")
"""What may be removed: VLMFT_CACHE can name a folder with other things in it."""
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


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
    files = code_files(dataset_class)
    return sha256(PIL.__version__, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)))


def code_files(dataset_class: type) -> set[Path]:
    """The code that turns a file into rows and pixels: all of `vlmft/data`, and the class's own."""
    own = {getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in dataset_class.__mro__}
    return {
        *Path(__file__).parents[1].rglob("*.py"),
        Path(vlmft.sample.__file__),
        *(Path(name) for name in own if name),
    }


def kept(name: str, fingerprint: str | None, make: Callable[[], Arrays]) -> Arrays:
    """The result of `make`, cached by name and fingerprint; without a fingerprint nothing is cached."""
    folder = cache_folder() if fingerprint is not None else None
    if folder is None or fingerprint is None:
        return make()
    file = folder / f"{name}.npz"
    found = _loaded(file, fingerprint)
    if found is None:
        found = make()
        _store(file, {**found, "fingerprint": np.array(fingerprint)})
    return found


def _loaded(file: Path, fingerprint: str) -> Arrays | None:
    try:
        with np.load(file) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            found = {name: stored[name] for name in stored.files}  # zip's checksums are compared on the way
    except OSError:  # missing, or no permission
        return None
    except DAMAGE as error:
        tell(f"{file} is damaged ({type(error).__name__}) and was deleted")
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):  # another user's
        os.utime(file)
    return found


def _store(file: Path, arrays: Arrays) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        temporary.replace(file)
        for other in file.parent.iterdir():
            if OWN_FILE.fullmatch(other.name) and time.time() - other.stat().st_mtime > UNUSED_DAYS * 86_400:
                other.unlink()
    except OSError as error:
        tell(f"{file} cannot be written ({error.strerror}); the next start takes as long")
    finally:
        temporary.unlink(missing_ok=True)
