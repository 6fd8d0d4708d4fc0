"""Untrusted archives, unpacked member by member: no file outside the folder, no links, limits on size."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO

from vlmft.config.check import ConfigError
from vlmft.config.failures import NO_ROOM
from vlmft.data.sources.webdataset import webdataset_shards

NAME = re.compile(r"\.(zip|tgz|tar(\.(gz|bz2|xz))?)$")
MAX_MEMBERS, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES = 2_000_000, 8 << 30, 500 << 30
MAX_RATIO, FREE_BYTES = 100, 64 << 20
"""Unpacked bytes for one packed byte, beyond a small amount that any archive may hold."""
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)
"""What the readers raise; RuntimeError for an encrypted member, OSError also for a file where a folder should be."""


def as_folder(path: str) -> str:
    """`data.path` as a folder: an archive is unpacked once, beside itself; any other path is returned as it is.

    Raises:
        ConfigError: as `extract`, or the folder beside it cannot be made.
    """
    archive = Path(path).expanduser()
    if not (NAME.search(archive.name) and archive.is_file()) or webdataset_shards(archive):
        return path
    folder = archive.with_name(f"{archive.name}.unpacked")
    try:
        found = folder if folder.exists() else extract(archive, folder)
    except PermissionError as error:
        raise ConfigError(f"data.path: {folder} cannot be made ({error.strerror}); unpack it elsewhere") from error
    inside = [folder for folder in found.iterdir() if folder.name != "__MACOSX"]  # added by macOS
    return str(inside[0] if len(inside) == 1 and inside[0].is_dir() else found)


def extract(archive: Path, folder: Path) -> Path:
    """Unpacks a tar (plain, gz, bz2, xz) or zip archive into the new folder `folder`, whole or not at all.

    Raises:
        ConfigError: `folder` exists; the archive is damaged or too large; a member is a link or would lie outside.
    """
    if folder.exists():
        raise ConfigError(f"Expected a new folder, got {str(folder)!r}, which exists; remove it or use it as it is")
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _unpack(archive, beside.resolve())
        beside.rename(folder)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{archive}: Expected a whole tar or zip archive, got {reason!r}; get it again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _unpack(archive: Path, root: Path) -> None:
    left = min(MAX_TOTAL_BYTES, FREE_BYTES + MAX_RATIO * archive.stat().st_size)
    for number, (name, source) in enumerate(_members(archive)):
        path, target = PureWindowsPath(name), (root / name).resolve()  # the former reads "/" and "\" alike
        _require(number < MAX_MEMBERS, archive, name, f"is one more than {MAX_MEMBERS:,}")
        inside = not path.anchor and ".." not in path.parts and target.is_relative_to(root)
        _require(inside, archive, name, "would lie outside the folder")
        (target.parent if source else target).mkdir(parents=True, exist_ok=True)
        if source is not None:
            limit = min(left, MAX_MEMBER_BYTES)
            with source, target.open("xb") as sink:
                while data := source.read(1 << 20):  # counted here: the size in a header is not trusted
                    sink.write(data)
                    _require(sink.tell() <= limit, archive, name, "unpacks to more than such an archive may hold")
                left -= sink.tell()


def _require(holds: bool, archive: Path, name: str, why: str) -> None:
    if not holds:
        raise ConfigError(f"{archive}: member {name!r} {why}; nothing was unpacked, get the archive from its authors")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content, None for a folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                _require(info.is_dir() or regular, archive, info.filename, "is a link or a device")
                yield info.filename, None if info.is_dir() else packed.open(info)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            _require(member.isdir() or member.isreg(), archive, member.name, "is a link or a device")
            yield member.name, None if member.isdir() else tar.extractfile(member)
