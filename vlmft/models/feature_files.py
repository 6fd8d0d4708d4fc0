"""Features of images in files: written whole or not at all, checked when read, limited in size.

A file holds the entries that one process made in some seconds, as safetensors. Files are only ever added or deleted, so
that several processes may read and write one folder at once: two that make the same image's features store equal bytes
twice. A file or entry that is damaged is deleted or passed over, and made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vlmft.config.files import write_whole
from vlmft.sample import PIXEL_HASHES

FILE_BYTES, FILE_SECONDS = 64 << 20, 20.0
"""What was made is written after so many bytes, or so many seconds."""
FREE_BYTES = 1 << 30
"""Room on the disk that the cache leaves."""
TORN_SECONDS = 3600.0
FEATURE = "feature"


@dataclass(frozen=True)
class Entry:
    """What is stored of one image."""

    feature: torch.Tensor
    """(n_image_tokens, d) in the model's dtype, on the CPU."""
    arrays: Mapping[str, np.ndarray]
    """The image processor's output without pixels, such as image_grid_thw."""
    placeholder: str
    """The text that the processor writes in the image's place."""
    identity: str = ""
    """`Image.identity`: a later process knows the image's hash by it, without decoding."""

    @property
    def n_bytes(self) -> int:
        return self.feature.nbytes + sum(array.nbytes for array in self.arrays.values()) + len(self.placeholder)


class FeatureFiles:
    """The entries of one key, in a folder beside those of other keys; `max_bytes` is for all of them together.

    Where the limit is reached, files that this process does not use go, the longest unused first; where that is not
    enough, what is made is not stored: an epoch that is larger than its cache finds a part of it each time.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._forget()

    def _forget(self) -> None:
        self.place: dict[str, Path] = {}
        """sha256 of an image -> the file that its entry is in."""
        self.headers: dict[Path, dict[str, dict[str, Any]]] = {}
        self.opened: dict[Path, Any] = {}
        self.used: set[Path] = set()
        self.listed_at = -1
        """The folder's mtime when it was last looked through, nanoseconds."""
        self.pending: dict[str, Entry] = {}
        self.pending_bytes, self.pending_since = 0, 0.0
        self.full = False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def facts(self, sha256: str) -> tuple[Mapping[str, np.ndarray], str] | None:
        """An entry's arrays and placeholder, without reading its feature."""
        if (file := self._file_of(sha256)) is None:
            return None
        if file not in self.used:
            self.used.add(file)
            with contextlib.suppress(OSError):  # another user's
                os.utime(file)
        header = self.headers[file][sha256]
        arrays = {name: self.opened[file].get_tensor(f"{sha256}/{name}").numpy() for name in header["arrays"]}
        if header["facts_crc"] == _facts_crc(arrays, header["placeholder"]):
            return arrays, sys.intern(header["placeholder"])
        self._drop(file)
        return None

    def read(self, sha256: str) -> Entry | None:
        """An image's entry; a file in which a checksum is wrong is deleted."""
        facts = self.facts(sha256)
        if facts is None:
            return None
        file = self.place[sha256]
        feature = self.opened[file].get_tensor(f"{sha256}/{FEATURE}").clone()
        if self.headers[file][sha256]["feature_crc"] == _crc(feature):
            return Entry(feature, *facts)
        self._drop(file)
        return None

    def hashes(self) -> set[str]:
        """The images that have an entry."""
        self._list()
        return set(self.place)

    def add(self, sha256: str, entry: Entry) -> None:
        """Stores an entry, some seconds later: a process that is killed loses no more."""
        if self.full or sha256 in self.pending:
            return
        if not self.pending:
            self.pending_since = time.monotonic()
        self.pending[sha256] = entry
        self.pending_bytes += entry.n_bytes
        if self.pending_bytes >= FILE_BYTES or time.monotonic() - self.pending_since >= FILE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. A disk that is full or cannot be written costs the cache, never the run."""
        if not self.pending:
            return
        entries, n_bytes, self.pending, self.pending_bytes = self.pending, self.pending_bytes, {}, 0
        try:
            if not self._has_room(n_bytes):
                self.full = True
                print(
                    f"feature cache: {self.max_bytes / 2**30:.3g} GiB are full; further images are seen anew each time "
                    "(cache.max_gib; vlmft cache shows what is stored)",
                    file=sys.stderr,
                )
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{uuid.uuid4().hex}.safetensors"
            write_whole(file, _packed(entries))
            self._open(file)
        except OSError as error:
            self.full = True
            print(
                f"feature cache: {self.folder} cannot be written ({error.strerror}); set cache.folder, or "
                "cache.max_gib=0 to keep features in memory alone",
                file=sys.stderr,
            )

    def _has_room(self, n_bytes: int) -> bool:
        """Whether a file of this size may be added, after files that are not used here were deleted for it."""
        sizes = {file: (found.st_mtime, found.st_size) for file, found in stored_files(self.folder.parent)}
        total = n_bytes + sum(size for _, size in sizes.values())
        for file in sorted(sizes.keys() - self.headers.keys(), key=lambda file: sizes[file]):
            if total <= self.max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= sizes[file][1]
        for torn in self.folder.parent.glob("*/.*.partial"):  # of a process that was killed while it wrote
            with contextlib.suppress(OSError):
                if time.time() - torn.stat().st_mtime > TORN_SECONDS:
                    torn.unlink()
        place = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        return total <= self.max_bytes and shutil.disk_usage(place).free > n_bytes + FREE_BYTES

    def _file_of(self, sha256: str) -> Path | None:
        """The file with an image's entry, also one that another process has added since."""
        if sha256 not in self.place:
            self._list()
        return self.place.get(sha256)

    def _list(self) -> None:
        """Opens files that were added since the last look, by any process."""
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            return
        if changed == self.listed_at:
            return
        self.listed_at = changed
        for file, _ in stored_files(self.folder, "*"):
            if file not in self.headers:
                self._open(file)

    def _open(self, file: Path) -> None:
        try:
            stored = safe_open(file, "pt")  # type: ignore[no-untyped-call]
            metadata: dict[str, str] = stored.metadata()  # type: ignore[no-untyped-call]
            if zlib.crc32(metadata["entries"].encode()) != int(metadata["crc"]):
                raise ValueError("wrong checksum")
            header = json.loads(metadata["entries"])
        except FileNotFoundError:  # deleted by another process just now
            return
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            self._drop(file)
            return
        self.headers[file], self.opened[file] = header, stored
        for sha256, entry in header.items():
            self.place.setdefault(sha256, file)
            if entry["identity"]:
                PIXEL_HASHES.setdefault(entry["identity"], sha256)

    def _drop(self, file: Path) -> None:
        """Deletes a damaged file."""
        print(f"feature cache: {file} is damaged and was deleted", file=sys.stderr)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        self.headers.pop(file, None)
        self.opened.pop(file, None)
        self.place = {sha256: place for sha256, place in self.place.items() if place != file}


def stored_files(folder: Path, pattern: str = "*/*") -> list[tuple[Path, os.stat_result]]:
    """The files of a cache folder, or with "*" of one key in it, with size and time of last use."""
    found = []
    for file in sorted(folder.glob(f"{pattern}.safetensors")):
        with contextlib.suppress(OSError):  # deleted by another process just now
            found.append((file, file.stat()))
    return found


def _packed(entries: Mapping[str, Entry]) -> bytes:
    tensors, header = {}, {}
    for sha256, entry in entries.items():
        tensors[f"{sha256}/{FEATURE}"] = entry.feature.contiguous()
        for name, array in entry.arrays.items():
            tensors[f"{sha256}/{name}"] = torch.from_numpy(np.ascontiguousarray(array))
        header[sha256] = {
            "arrays": sorted(entry.arrays),
            "placeholder": entry.placeholder,
            "identity": entry.identity,
            "facts_crc": _facts_crc(entry.arrays, entry.placeholder),
            "feature_crc": _crc(entry.feature),
        }
    text = json.dumps(header)
    data: bytes = save(tensors, {"entries": text, "crc": str(zlib.crc32(text.encode()))})
    return data


def _crc(tensor: torch.Tensor) -> int:
    data: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return zlib.crc32(data)


def _facts_crc(arrays: Mapping[str, np.ndarray], placeholder: str) -> int:
    crc = zlib.crc32(placeholder.encode())
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), crc)
    return crc
