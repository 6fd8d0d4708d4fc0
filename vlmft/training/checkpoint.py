"""Checkpoints as folders: safetensors for tensors, JSON for the rest, a manifest with sha256. No pickle, no base.

A folder appears whole or not at all: it is written beside its place, synced, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FORMAT = 2
FILES = ("tensors.safetensors", "state.json")
STEP = re.compile(r"step-\d{7}")


class CheckpointError(RuntimeError):
    """A checkpoint that is not whole, or not ours."""


def packed(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """`value` as JSON; its tensors go to `tensors` under a number and their path, and leave a mark.

    Raises:
        TypeError: something that is neither plain nor a tensor, named by its path.
    """
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors)}{path}"  # numbered, because {"a/b": x} and {"a": {"b": y}} have the same path
        tensors[name] = value.detach().contiguous().cpu().clone()
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        for key in value:
            if key is not None and not isinstance(key, (bool, int, float, str)):
                raise TypeError(f"Expected plain keys in a checkpoint, got a {type(key).__name__} at {path}/{key}")
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: packed(item, tensors, f"{path}/{key}") for key, item in value.items()}
        return {"__pairs__": [[key, packed(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [packed(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"__tuple__": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"Expected plain values or tensors in a checkpoint, got {type(value).__name__} at {path}")


def unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        if "__pairs__" in value:
            return {key: unpacked(item, tensors) for key, item in value["__pairs__"]}
        if "__tuple__" in value:
            return tuple(unpacked(item, tensors) for item in value["__tuple__"])
        return {key: unpacked(item, tensors) for key, item in value.items()}
    return [unpacked(item, tensors) for item in value] if isinstance(value, list) else value


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when the block ends: whole or not at all.

    An older one of that name stays readable until the new one is there. Its files may be read by whom the umask lets,
    whatever wrote them: safetensors leaves them to their owner alone.

    Raises:
        OSError: it cannot be written, such as on a full disk; what was written of it is gone.
    """
    beside, whole = folder.with_name(f".{folder.name}.partial"), False
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        _open_to_others(beside)
        for file in (*beside.rglob("*"), beside):
            _sync(file)
        whole = True
    except (OSError, SafetensorError) as error:
        raise _as_os_error(error) from error
    finally:
        if not whole:
            shutil.rmtree(beside, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(_replaced(folder), ignore_errors=True)
        folder.rename(_replaced(folder))
    beside.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(_replaced(folder), ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    probe = folder / ".mode"  # not os.umask(), which cannot be read without being set, for all threads
    probe.touch(mode=0o666)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _as_os_error(error: Exception) -> OSError:
    """safetensors writes with Rust, whose errors hold the system's number in their text alone."""
    number = re.search(r"os error (\d+)", str(error))
    return error if isinstance(error, OSError) else OSError(int(number[1]) if number else errno.EIO, str(error))


def write_checkpoint(content: Mapping[str, Any], folder: Path) -> None:
    """Writes the folder whole or not at all.

    Raises:
        OSError: as `whole_folder`.
    """
    with whole_folder(folder) as beside:
        tensors: dict[str, torch.Tensor] = {}
        state = json.dumps(packed(content, tensors))
        save_file(tensors, beside / "tensors.safetensors")
        (beside / "state.json").write_text(state, encoding="utf-8")
        hashes = {name: file_sha256(beside / name) for name in FILES}
        (beside / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}), encoding="utf-8")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What was written, after its hashes have been checked.

    Raises:
        CheckpointError: no manifest, another format, or a file whose hash differs.
    """
    if not folder.exists() and _replaced(folder).exists():
        folder = _replaced(folder)  # the process ended between the two renames of `write_checkpoint`
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"Expected checkpoint format {FORMAT}, got {manifest['format']} in {folder}")
        for name in FILES:
            if file_sha256(folder / name) != manifest["sha256"][name]:
                raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the manifest's")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({type(error).__name__}: {error})") from error
    content: dict[str, Any] = unpacked(state, load_file(folder / "tensors.safetensors"))
    return content


class FolderCheckpointIO(CheckpointIO):
    """Lightning's interface for another checkpoint format. A failed write is reported and does not stop a run."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:  # not around Lightning's call of this: other ranks wait for its end
            print(f"{Path(path).name} is not saved ({error}); training goes on and saves the next one", file=sys.stderr)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


def steps_in(folder: Path) -> list[str]:
    """Names of our checkpoints in a folder, oldest first; what is not ours is left alone."""
    return sorted(path.name for path in folder.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir())


def latest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes its hashes, and a sentence for each newer one that does not."""
    damaged = []
    for name in reversed(steps_in(folder)):
        try:
            read_checkpoint(folder / name)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        return folder / name, damaged
    return None, damaged
