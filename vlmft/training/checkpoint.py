"""Checkpoints as folders: safetensors for tensors, JSON for the rest, a manifest with sha256. No pickle, no base.

A folder appears whole or not at all: it is written beside its place, synced, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors.torch import load_file, save_file

FORMAT = 1
KEEP = 2


class CheckpointError(RuntimeError):
    """A checkpoint that is not whole, or not ours."""


def packed(value: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """`value` as JSON; its tensors go to `tensors` under their path and leave a mark.

    Raises:
        TypeError: something that is neither plain nor a tensor, named by its path.
    """
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous().cpu().clone()
        return {"__tensor__": path}
    if isinstance(value, Mapping):
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


def write_checkpoint(content: Mapping[str, Any], folder: Path) -> None:
    """Writes the folder whole or not at all, replacing an older one of that name."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    state = json.dumps(packed(content, tensors))
    save_file(tensors, beside / "tensors.safetensors")
    (beside / "state.json").write_text(state, encoding="utf-8")
    hashes = {name: file_sha256(beside / name) for name in ("tensors.safetensors", "state.json")}
    (beside / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}), encoding="utf-8")
    for file in beside.iterdir():
        _sync(file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    _sync(folder.parent)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What was written, after its hashes have been checked.

    Raises:
        CheckpointError: no manifest, another format, or a file whose hash differs.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"Expected checkpoint format {FORMAT}, got {manifest['format']} in {folder}")
        for name, expected in manifest["sha256"].items():
            if file_sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the manifest's")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({error})") from error
    content: dict[str, Any] = unpacked(state, load_file(folder / "tensors.safetensors"))
    return content


class FolderCheckpointIO(CheckpointIO):
    """Lightning's door for another checkpoint format."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)


class Checkpoints(L.Callback):
    """Saves after each validation, keeps the best by the metric and the last two, and remembers which was best."""

    def __init__(self, folder: Path, monitor: str | None, patience: int | None) -> None:
        self.folder, self.monitor, self.patience = folder, monitor, patience
        self.best: str | None = None
        self.best_value: float | None = None
        self.since_best = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_value": self.best_value, "since_best": self.since_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_value = state_dict["best"], state_dict["best_value"]
        self.since_best = state_dict["since_best"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != "fit":
            return
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.fast_dev_run and not (self.folder / self.name(trainer)).exists():
            self.save(trainer)

    @staticmethod
    def name(trainer: L.Trainer) -> str:
        return f"step-{trainer.global_step:07d}"

    def save(self, trainer: L.Trainer) -> None:
        """Writes this step's folder, updates the best, removes what is neither best nor among the last."""
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is not None:
            improved = self.best_value is None or float(value) > self.best_value
            self.since_best = 0 if improved else self.since_best + 1
            if improved:
                self.best, self.best_value = self.name(trainer), float(value)
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(self.folder / self.name(trainer))
        kept = sorted(path.name for path in self.folder.glob("step-*"))
        for name in kept[:-KEEP]:
            if name != self.best:
                shutil.rmtree(self.folder / name)
        if self.patience is not None and self.since_best >= self.patience:
            trainer.should_stop = True

    def chosen(self) -> Path:
        """The best checkpoint, or the last one where nothing was validated."""
        return self.folder / (self.best or sorted(path.name for path in self.folder.glob("step-*"))[-1])
