"""Archives are unpacked whole and inside their folder, or refused in one line with nothing left behind."""

from __future__ import annotations

import bz2
import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vlmft.config.check import ConfigError
from vlmft.data.sources import archives
from vlmft.data.sources.archives import as_folder, extract

RoomFor = Callable[[int], AbstractContextManager[None]]

FILES = {"a.txt": b"one", "images/b.png": bytes(range(256)) * 9000, "images/deep/empty": b""}
"""The second takes more than one read."""


def tar_of(*members: tuple[str, bytes, bytes], mode: str = "w", link: str = "") -> bytes:
    """(name, tar type, content)..., whatever they are."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:  # type: ignore[call-overload]
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), link
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zip_of(*members: tuple[str, bytes], mode: int = 0) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return data.getvalue()


def good_tar(mode: str) -> bytes:
    return tar_of(*((name, tarfile.REGTYPE, content) for name, content in FILES.items()), mode=mode)


def refused(data: bytes, tmp_path: Path) -> str:
    """The line that refuses it, after a look that nothing was left anywhere."""
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    with pytest.raises(ConfigError) as raised:
        extract(archive, tmp_path / "to" / "data")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "to"]
    assert "\n" not in str(raised.value) and str(archive) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        *(good_tar(mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")),
        zip_of(*FILES.items()),
        zip_of(("images/", b""), *FILES.items()),
    ],
    ids=["tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "zip with a folder"],
)
def test_archives_are_unpacked_whole(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(data)
    folder = extract(tmp_path / "archive", tmp_path / "to" / "data")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["data"]
    with pytest.raises(ConfigError, match="which exists"):
        extract(tmp_path / "archive", folder)


OUTSIDE = ("../evil", "a/../../evil", "/tmp/evil", "C:\\evil", "\\\\host\\evil", "a\\..\\..\\evil", "//evil")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [lambda n: tar_of((n, tarfile.REGTYPE, b"x")), lambda n: zip_of((n, b"x"))])
def test_no_member_lands_outside(name: str, make: Callable[[str], bytes], tmp_path: Path) -> None:
    assert "would lie outside the folder" in refused(make(name), tmp_path)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "a.txt"),  # also one that stays inside: another member could go through it
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_are_refused(kind: bytes, link: str, tmp_path: Path) -> None:
    assert "member 'x' is a link or a device" in refused(tar_of(("x", kind, b""), link=link), tmp_path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(kind: int, tmp_path: Path) -> None:
    assert "is a link or a device" in refused(zip_of(("x", b"/etc/passwd"), mode=kind | 0o777), tmp_path)


def test_a_file_below_a_link_never_follows_it(tmp_path: Path) -> None:
    """The defect this guards against: tarfile's own extraction writes through a link of the same archive."""
    (tmp_path / "outside").mkdir()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        tar.addfile(link)
        file = tarfile.TarInfo("x/evil")
        file.size = 1
        tar.addfile(file, io.BytesIO(b"!"))
    with tarfile.open(fileobj=io.BytesIO(data.getvalue())) as tar:
        tar.extractall(tmp_path / "naive", filter="fully_trusted")
    assert (tmp_path / "outside" / "evil").exists()  # so the archive is one that does harm
    (tmp_path / "outside" / "evil").unlink()
    (tmp_path / "archive").write_bytes(data.getvalue())
    with pytest.raises(ConfigError, match="is a link"):
        extract(tmp_path / "archive", tmp_path / "data")
    assert list((tmp_path / "outside").iterdir()) == []


def test_bombs_are_refused_before_they_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: RoomFor
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    zeros = bytes(64 << 20)
    bombs = {
        "gz": gzip.compress(tar_of(("zeros", tarfile.REGTYPE, zeros))),
        "bz2": bz2.compress(tar_of(("zeros", tarfile.REGTYPE, zeros))),
        "zip": zip_of(("zeros", zeros)),
        "many": zip_of(*((f"zeros {i}", zeros[: 8 << 20]) for i in range(8))),
    }
    with room_for(24 << 20):  # a larger file could not even be written
        for name, data in bombs.items():
            (tmp_path / name).mkdir()
            assert len(data) < 1 << 17
            assert "unpacks to more than such an archive may hold" in refused(data, tmp_path / name)


@pytest.mark.parametrize(("cap", "value"), [("MAX_MEMBER_BYTES", 1 << 20), ("MAX_TOTAL_BYTES", 1 << 20)])
def test_sizes_are_capped(cap: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, cap, value)
    assert "member 'images/b.png' unpacks to more" in refused(good_tar("w"), tmp_path)


def test_members_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for data in (good_tar("w"), zip_of(*FILES.items())):
        assert "member 'images/deep/empty' is one more than 2" in refused(data, tmp_path)


DAMAGED = {
    "empty": b"",
    "text": b"<!doctype html>" * 99,
    "cut tar.gz": good_tar("w:gz")[:-40],
    "cut zip": zip_of(*FILES.items())[:-40],
    "a name twice": tar_of(("x", tarfile.REGTYPE, b"1"), ("x", tarfile.REGTYPE, b"2")),
    "a file as folder": tar_of(("x", tarfile.REGTYPE, b"1"), ("x/y", tarfile.REGTYPE, b"2")),
    "a file named as the folder": tar_of((".", tarfile.REGTYPE, b"1")),
    "a long name": zip_of(("x" * 400, b"1")),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_archives_are_refused(name: str, tmp_path: Path) -> None:
    assert "Expected a whole tar or zip archive" in refused(DAMAGED[name], tmp_path)


def test_a_full_disk_is_not_called_a_damaged_archive(tmp_path: Path, room_for: RoomFor) -> None:
    (tmp_path / "archive").write_bytes(good_tar("w"))
    with room_for(1 << 20), pytest.raises(OSError, match="File too large"):
        extract(tmp_path / "archive", tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_a_path_to_an_archive_is_the_folder_in_it(tmp_path: Path) -> None:
    archive = tmp_path / "charts.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("ChartQA/test/test_human.json", "[]")
        packed.writestr("ChartQA/train/train_human.json", "[]")
    folder = Path(as_folder(str(archive)))
    assert folder == tmp_path / "charts.zip.unpacked" / "ChartQA"
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"]
    archive.write_bytes(b"")
    assert as_folder(str(archive)) == str(folder), "it is unpacked once"
    assert as_folder(str(tmp_path)) == str(tmp_path) and as_folder("org/dataset.zip") == "org/dataset.zip"
