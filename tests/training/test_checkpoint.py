"""A checkpoint is there whole or not at all, comes back as it was, and never needs pickle."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from vlmft.training import checkpoint as checkpoint_file
from vlmft.training.callbacks import StepCheckpoint, early_stopping
from vlmft.training.checkpoint import (
    FILES,
    CheckpointError,
    FolderCheckpointIO,
    latest_whole,
    packed,
    read_checkpoint,
    steps_in,
    unpacked,
    write_checkpoint,
)

RoomFor = Callable[[int], AbstractContextManager[None]]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.bool,
)


def contents() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randint(0, 2, (2, 3), generator=generator).to(dtype) for dtype in DTYPES}
    base = torch.arange(12.0).reshape(3, 4)
    return {
        "state_dict": tensors,
        "optimizer": {
            0: {"step": torch.tensor(3.0), "__quantised__": {"state": torch.zeros(5)}},
            1: [torch.ones(1), ()],
        },
        "mixed keys": {1: "int", "1": "text", 1.5: "float", None: "none", False: "bool"},
        "same path": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}},
        "shared": [base, base, base.T, base[1:]],
        "empty": {"dict": {}, "list": [], "tuple": (), "tensor": torch.zeros(0, 3)},
        "plain": [1, -1.5, float("inf"), True, None, "текст \x00 \ud7ff", 2**70],
        "nested": ((1, [2, (3,)]), {"x": {"y": {"z": torch.tensor(1, dtype=torch.int64)}}}),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        keys = [(type(key), key) for key in one]
        return keys == [(type(key), key) for key in other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_round_trip(tmp_path: Path) -> None:
    write_checkpoint(contents(), tmp_path / "step-1")
    assert same(read_checkpoint(tmp_path / "step-1"), contents())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1"]  # nothing is left beside it
    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == sorted([*FILES, "manifest.json"])


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_checkpoint(contents(), tmp_path / name)
    for file in (*FILES, "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_written_tensors_are_copies() -> None:
    tensors: dict[str, torch.Tensor] = {}
    weight = torch.nn.Parameter(torch.zeros(2))
    mark = packed({"w": weight}, tensors)
    with torch.no_grad():
        weight.fill_(1)
    assert torch.equal(unpacked(mark, tensors)["w"], torch.zeros(2)) and not unpacked(mark, tensors)["w"].requires_grad


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b": [1, {2, 3}]}}, "set at /a/b/1"),
        ({"loops": {"state": object()}}, "object at /loops/state"),
        ({"x": (Path("y"),)}, "PosixPath at /x/0"),
        ({"n": np.int64(1)}, "int64 at /n"),
        ({"f": len}, "builtin_function_or_method at /f"),
        ({"k": {(1, 2): "tuple"}}, r"tuple at /k/\(1, 2\)"),
        ({"b": b"bytes"}, "bytes at /b"),
    ],
)
def test_other_types_are_refused_by_their_path(value: Any, path: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=path):
        write_checkpoint(value, tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "one bit", "longer", "zeros"])
def test_a_damaged_file_is_told(file: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    write_checkpoint(contents(), folder)
    data = (folder / file).read_bytes()
    flipped = bytes([data[-5] ^ 1])
    damaged = {
        "empty": b"",
        "truncated": data[: len(data) // 2],
        "one bit": data[:-5] + flipped + data[-4:],
        "longer": data + b"0",
        "zeros": bytes(len(data)),
    }
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="step-1"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        '{"format": 1, "sha256": {}}',
        '{"format": 1}',
        '{"format": 2, "sha256": {}}',
        "[]",
        "3",
        '{"format": 1, "sha256": []}',
    ],
)
def test_a_manifest_that_vouches_for_nothing_is_refused(manifest: str, tmp_path: Path) -> None:
    write_checkpoint(contents(), tmp_path / "step-1")
    (tmp_path / "step-1" / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "step-1")


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_checkpoint(tmp_path / "nowhere")


class KilledError(Exception):
    """Stands for SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("operation", ["save_file", "_sync", "rename 1", "rename 2", "rmtree 3"])
def test_killed_while_replacing_leaves_one_of_the_two_whole(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-1"
    write_checkpoint({"which": "old"}, folder)
    with monkeypatch.context() as patch:
        _kill_at(operation, patch)
        with pytest.raises(KilledError):
            write_checkpoint({"which": "new"}, folder)
    assert read_checkpoint(folder)["which"] == ("new" if operation == "rmtree 3" else "old")
    write_checkpoint({"which": "newer"}, folder)  # what the killed one left is no obstacle, and goes
    assert read_checkpoint(folder)["which"] == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def _kill_at(operation: str, patch: pytest.MonkeyPatch) -> None:
    name, _, number = operation.partition(" ")
    owner: Any = {"rename": Path, "rmtree": shutil}.get(name, checkpoint_file)
    original, calls = getattr(owner, name), 0

    def killed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(number or 1):
            raise KilledError
        return original(*arguments, **named)

    patch.setattr(owner, name, killed)


def test_killed_while_writing_a_new_one_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in ("save_file", "_sync", "rename 1"):
        with monkeypatch.context() as patch:
            _kill_at(operation, patch)
            with pytest.raises(KilledError):
                write_checkpoint({"which": "new"}, tmp_path / "step-0000001")
        assert not (tmp_path / "step-0000001").exists() and steps_in(tmp_path) == []


def test_every_file_is_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(Path(f"/proc/self/fd/{d}").readlink().name), fsync(d)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    write_checkpoint({"x": 1}, tmp_path / "step-1")
    named = events.index("rename")
    assert set(events[:named]) == {*FILES, "manifest.json", ".step-1.partial"}
    assert events[named + 1 :] == [tmp_path.name]


def test_nothing_of_it_is_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "save", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    write_checkpoint(contents(), tmp_path / "step-1")
    assert same(read_checkpoint(tmp_path / "step-1"), contents())
    json.loads((tmp_path / "step-1" / "manifest.json").read_text())


# --- a full disk


@pytest.mark.parametrize("content", [{"w": torch.zeros(9000)}, {"text": "x" * 9000}], ids=["tensors", "state"])
def test_a_full_disk_is_an_error_and_leaves_nothing(content: dict[str, Any], tmp_path: Path, room_for: RoomFor) -> None:
    write_checkpoint({"which": "old"}, tmp_path / "step-0000001")
    for step in (1, 2):
        with room_for(8000), pytest.raises(OSError) as raised:
            write_checkpoint(content, tmp_path / f"step-000000{step}")
        assert raised.value.errno == errno.EFBIG
        assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert read_checkpoint(tmp_path / "step-0000001")["which"] == "old"


def test_training_goes_on_when_a_checkpoint_cannot_be_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], room_for: RoomFor
) -> None:
    writer = FolderCheckpointIO()
    with room_for(8000):
        writer.save_checkpoint({"w": torch.zeros(9000)}, tmp_path / "step-0000001")
    said = capsys.readouterr().err
    assert said.startswith("step-0000001 is not saved (") and said.count("\n") == 1 and "File too large" in said
    writer.save_checkpoint({"w": torch.zeros(9000)}, tmp_path / "step-0000002")
    assert steps_in(tmp_path) == ["step-0000002"]


class FullDisk(FolderCheckpointIO):
    """As much of a Trainer's way to the writer as a test needs: the disk is full at these steps."""

    def __init__(self, full_at: set[int], room_for: RoomFor) -> None:
        self.full_at, self.room_for = full_at, room_for

    def save(self, trainer: Fake, path: Path) -> None:
        with self.room_for(30_000 if trainer.global_step in self.full_at else 1 << 30):
            self.save_checkpoint({"step": trainer.global_step, "w": torch.zeros(9000)}, path)


@pytest.mark.parametrize(
    ("full_at", "kept", "best"),
    [
        ({2}, ["step-0000001", "step-0000003"], "step-0000001"),  # 2 would have been the best, and is not there
        ({1}, ["step-0000002", "step-0000003"], "step-0000002"),
        ({3}, ["step-0000001", "step-0000002"], "step-0000002"),
        ({1, 2, 3}, [], None),
    ],
)
def test_the_best_is_one_that_is_there(
    full_at: set[int],
    kept: list[str],
    best: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room_for: RoomFor,
) -> None:
    monkeypatch.setattr(Fake, "save_checkpoint", lambda self, path, _: FullDisk(full_at, room_for).save(self, path))
    callback = StepCheckpoint(tmp_path, "val/x")
    validated(callback, [0.3, 0.5, 0.1])
    assert (steps_in(tmp_path), callback.best) == (kept, best)
    assert callback.chosen() == (tmp_path / best if best else None)
    assert callback.is_saved == (3 not in full_at)


def test_the_end_is_tried_again_with_its_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: RoomFor
) -> None:
    tries = iter([set(), {2}, set()])  # no room after the last validation, room again at the end of training
    monkeypatch.setattr(Fake, "save_checkpoint", lambda self, path, _: FullDisk(next(tries), room_for).save(self, path))
    callback = StepCheckpoint(tmp_path, "val/x")
    validated(callback, [0.3, 0.5])
    assert (steps_in(tmp_path), callback.best) == (["step-0000001", "step-0000002"], "step-0000002")


def test_without_validation_an_unsaved_end_is_not_replaced_by_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: RoomFor
) -> None:
    monkeypatch.setattr(Fake, "save_checkpoint", lambda self, path, _: FullDisk({2}, room_for).save(self, path))
    callback = StepCheckpoint(tmp_path, None)
    validated(callback, [None, None])
    assert steps_in(tmp_path) == ["step-0000001"] and callback.chosen() is None  # the weights in memory are newer


# --- which ones are kept


class Fake:
    """As much of a Trainer as the callbacks ask for."""

    def __init__(self) -> None:
        self.global_step, self.should_stop, self.sanity_checking, self.fast_dev_run = 0, False, False, False
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.state = SimpleNamespace(fn="fit")
        self.enable_validation, self.is_global_zero = True, False
        self.current_epoch = 0
        self.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision)

    def save_checkpoint(self, path: str, weights_only: bool) -> None:
        write_checkpoint({"step": self.global_step}, Path(path))


def validated(callback: StepCheckpoint, values: list[float | None], *others: Callback) -> Fake:
    """A run that is validated after each of these steps, with these values."""
    trainer = Fake()
    for value in values:
        trainer.global_step += 1
        trainer.callback_metrics = {} if value is None else {"val/x": torch.tensor(value)}
        for each in (*others, callback):
            each.on_validation_end(trainer, None)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    return trainer


def test_the_best_and_the_last_two_are_kept(tmp_path: Path) -> None:
    callback = StepCheckpoint(tmp_path, "val/x")
    validated(callback, [0.1, 0.5, 0.2, 0.3, 0.4])
    assert (callback.best, callback.best_value) == ("step-0000002", 0.5)
    assert steps_in(tmp_path) == ["step-0000002", "step-0000004", "step-0000005"]
    assert read_checkpoint(callback.chosen()) == {"step": 2}


def test_of_equals_the_first_is_the_best(tmp_path: Path) -> None:
    callback, stopping = StepCheckpoint(tmp_path, "val/x"), early_stopping("val/x", 9)
    validated(callback, [0.0, 0.0, 0.5, 0.5], stopping)
    assert (callback.best, callback.best_value, stopping.wait_count) == ("step-0000003", 0.5, 1)


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    callback = StepCheckpoint(tmp_path, "val/x")
    validated(callback, [float("nan"), 0.1, float("nan")])
    assert (callback.best, callback.best_value) == ("step-0000002", pytest.approx(0.1))


def test_without_validation_the_last_is_chosen(tmp_path: Path) -> None:
    callback = StepCheckpoint(tmp_path, None)
    validated(callback, [None, None, None])
    assert callback.best is None and callback.chosen().name == "step-0000003"
    assert steps_in(tmp_path) == ["step-0000002", "step-0000003"]


def test_the_end_is_saved_and_not_taken_for_a_validation(tmp_path: Path) -> None:
    callback = StepCheckpoint(tmp_path, "val/x")
    trainer = validated(callback, [0.5])
    trainer.global_step = 7  # the metric of step 1 is still there
    trainer.callback_metrics = {"val/x": torch.tensor(0.9)}
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert steps_in(tmp_path) == ["step-0000001", "step-0000007"]
    assert (callback.best, callback.best_value) == ("step-0000001", 0.5)


@pytest.mark.parametrize(("patience", "last"), [(None, 6), (1, 3), (2, 6), (3, 6)])
def test_patience(patience: int | None, last: int, tmp_path: Path) -> None:
    stopping = [early_stopping("val/x", patience)] if patience is not None else []
    trainer = validated(StepCheckpoint(tmp_path, "val/x"), [0.1, 0.2, 0.2, 0.3, 0.1, 0.1], *stopping)
    assert trainer.global_step == last
    assert trainer.should_stop == (patience in (1, 2))


def test_sanity_checks_and_dry_runs_save_nothing(tmp_path: Path) -> None:
    for name in ("sanity_checking", "fast_dev_run"):
        trainer = Fake()
        setattr(trainer, name, True)
        StepCheckpoint(tmp_path, "val/x").on_validation_end(trainer, None)  # type: ignore[arg-type]
    trainer.fast_dev_run = True
    StepCheckpoint(tmp_path, "val/x").on_train_end(trainer, None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_best_travels_in_the_checkpoint(tmp_path: Path) -> None:
    one, stopping = StepCheckpoint(tmp_path / "before", "val/x"), early_stopping("val/x", 2)
    validated(one, [0.1, 0.2, 0.5, 0.4], stopping)
    states = unpacked(*packed_pair([one.state_dict(), stopping.state_dict()]))
    moved, stopping = StepCheckpoint(tmp_path / "after", "val/x"), early_stopping("val/x", 2)
    moved.load_state_dict(states[0])
    stopping.load_state_dict(states[1])
    assert (moved.best, moved.best_value, stopping.wait_count) == ("step-0000003", 0.5, 1)
    assert moved.chosen() == tmp_path / "after/step-0000003"
    another = StepCheckpoint(tmp_path / "after", "val/x", anew=True)
    another.load_state_dict(states[0])
    assert another.best is None


def packed_pair(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    tensors: dict[str, torch.Tensor] = {}
    return json.loads(json.dumps(packed(value, tensors))), tensors


def test_the_latest_whole_one_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint({"step": step}, tmp_path / f"step-{step:07d}")
    (tmp_path / "step-0000003" / "state.json").write_text("{")
    (tmp_path / "step-9999999x").mkdir()  # not ours
    found, sentences = latest_whole(tmp_path)
    assert found == tmp_path / "step-0000002"
    assert len(sentences) == 1 and "step-0000003" in sentences[0]
    assert latest_whole(tmp_path / "none") == (None, [])
