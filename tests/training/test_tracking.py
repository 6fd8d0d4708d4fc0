"""metrics.jsonl tells what was logged; a tracker that fails, in whatever way, changes nothing about a run."""

from __future__ import annotations

import csv
import json
import os
import struct
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from vlmft.config.check import ConfigError
from vlmft.config.entry import conf_dir
from vlmft.config.trainer_schema import LoggerConfig
from vlmft.training import tracking
from vlmft.training.metrics_file import read_metrics
from vlmft.training.tracking import (
    WANDB_FILE,
    MetricsFile,
    Wandb,
    has_api_key,
    lightning_loggers,
    replay,
    require_loggers,
    stored_run,
)

CANARY = "0123456789abcdef0123456789abcdef01234567"
"""What a W&B key looks like."""


def test_metrics_are_lines_of_plain_json(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "m.jsonl")
    log.log_metrics({"train/loss": torch.tensor(1.5), "epoch": 0, "text": "left out"}, step=3)  # type: ignore[dict-item]
    log.log_metrics({"val/loss": 2.0}, step=4)
    first, second = read_metrics(tmp_path / "m.jsonl")
    assert {**first, "seconds": None} == {"step": 3, "seconds": None, "train/loss": 1.5, "epoch": 0.0}
    assert second["val/loss"] == 2.0 and second["seconds"] >= first["seconds"] >= 0


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "m.jsonl")
    log.log_metrics({"a": float("nan"), "b": float("inf"), "c": torch.tensor(float("-inf")), "d": 0.0}, step=1)  # type: ignore[dict-item]

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (line,) = [json.loads(text, parse_constant=refuse) for text in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert (line["a"], line["b"], line["c"], line["d"]) == (None, None, None, 0.0)


def test_a_torn_last_line_is_left_out_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    assert [line["step"] for line in read_metrics(path)] == [1]
    MetricsFile(path).log_metrics({"x": 3.0}, step=3)
    assert [line["step"] for line in read_metrics(path)] == [1, 3]


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_cut_back_leaves_what_came_before(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "m.jsonl")
    for step in (0, 5, 9, 10, 12):
        log.log_metrics({"x": 1.0}, step=step)
    log.cut_back(10)
    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [0, 5, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder and no W&B settings in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return tmp_path


def test_has_api_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_api_key()
    netrc = home / ".netrc"
    for text, found in {
        "machine example.org\n login user\n password x\n": False,
        "machine api.wandb.ai\n login user\n password x\n": True,
        "machine wandb.firm.example\n login user\n password x\n": True,
        "no netrc at all": False,
        "": False,
    }.items():
        netrc.write_text(text)
        netrc.chmod(0o600)
        assert has_api_key() == found, text
    netrc.write_bytes(b"machine \xff\xfe\x00 \x80")
    assert has_api_key() in (True, False)  # and no exception
    netrc.unlink()
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    assert has_api_key()
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_api_key()


# --- a W&B that fails


class Errors:
    class CommError(Exception): ...

    class UsageError(Exception): ...

    class AuthenticationError(Exception): ...


class FakeRun:
    """A W&B run that raises, or hangs, where the test wants it."""

    def __init__(self, fails: str, mode: str, starting_step: int) -> None:
        self.fails, self.mode, self.id, self.offline = fails, mode, "abc", mode == "offline"
        self.dir, self.url = "/somewhere/files", "https://wandb.example/run"
        self.logged: list[dict[str, Any]] = []
        self.defined: dict[str, str | None] = {}
        self.starting_step = starting_step
        self.exit_code: int | None = None

    def _check(self, place: str) -> None:
        if self.fails == place:
            raise OSError(f"broken in {place}")

    def log(self, values: dict[str, Any]) -> None:
        self._check("log")
        if self.fails == "hang":
            time.sleep(60)
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str, summary: str | None = None) -> None:
        self._check("define")
        assert step_metric == "step"
        self.defined[name] = summary

    def finish(self, exit_code: int) -> None:
        self._check("finish")
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in wandb's place: `fails` names where it raises; `runs` are those it started."""
    module: Any = ModuleType("wandb")
    module.fails, module.runs, module.asked, module.rows_there = "", [], [], 0
    module.errors, module.Settings = Errors, SimpleNamespace

    def init(mode: str, **arguments: Any) -> FakeRun:
        module.asked.append((mode, arguments))
        if module.fails == "init" or (module.fails == "online" and mode == "online"):
            raise Errors.CommError("no network") if module.fails == "online" else ValueError("broken in init")
        module.runs.append(FakeRun(module.fails, mode, module.rows_there))
        return module.runs[-1]  # type: ignore[no-any-return]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def whole_life(tmp_path: Path, config: LoggerConfig | None = None) -> Wandb:
    tracker = Wandb(config or LoggerConfig(), tmp_path, "run", {"seed": 0}, "train")
    tracker.keep_best("val/x")
    tracker.log_metrics({"train/loss": 1.0, "bad": float("nan")}, step=1)
    tracker.log_metrics({"train/loss": 0.5}, step=2)
    tracker.log_summary({"test/x": 1.0})
    tracker.close(3)
    assert (tracker.name, tracker.log_hyperparams({})) == ("wandb", None)
    return tracker


@pytest.mark.parametrize("place", ["init", "define", "log", "finish"])
def test_it_may_fail_anywhere(place: str, home: Path, fake_wandb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_wandb.fails = place
    tracker = whole_life(home)
    assert capsys.readouterr().err.count(f"broken in {place}") == 1  # said once, and no more
    if place == "init":
        assert (tracker.version, tracker.where) == ("none", "none") and fake_wandb.runs == []
    if place in ("define", "log"):  # it is ended all the same, with the run's own exit code
        assert fake_wandb.runs[0].exit_code == 3


def test_it_may_not_even_be_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert whole_life(home).failed
    assert "going on with metrics.jsonl alone" in capsys.readouterr().err


def test_a_whole_life(home: Path, fake_wandb: Any) -> None:
    tracker = whole_life(home)
    (run,) = fake_wandb.runs
    assert not tracker.failed and tracker.version == "abc" and tracker.where == "/somewhere"
    rows = [{"train/loss": 1.0, "bad": None, "step": 1}, {"train/loss": 0.5, "step": 2}, {"test/x": 1.0}]
    assert run.logged == rows
    assert run.defined == {"*": None, "train/loss": "min", "val/loss": "min", "val/x": "max"}
    assert run.exit_code == 3 and tracker.seconds >= 0
    (arguments,) = [arguments for _, arguments in fake_wandb.asked]
    assert (arguments["name"], arguments["group"], arguments["job_type"]) == ("run", "run", "train")


def test_the_configured_group_wins(home: Path, fake_wandb: Any) -> None:
    whole_life(home, LoggerConfig(group="mine"))
    assert fake_wandb.asked[0][1]["group"] == "mine"


def test_a_hung_one_costs_the_waits_at_the_ends_and_no_more(
    home: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "SERVICE_SECONDS", 0.0)
    fake_wandb.fails = "hang"
    started = time.monotonic()
    tracker = Wandb(LoggerConfig(finish_timeout_seconds=0.5), home, "run", {}, "train")
    for step in range(1000):
        tracker.log_metrics({"x": 1.0}, step=step)
    logged = time.monotonic()
    tracker.close(0)
    assert logged - started < 2.0  # a thousand rows to something that takes a minute for each
    assert tracker.seconds >= 0.5 and time.monotonic() - logged < 2.0
    assert "wandb: no answer in 0.5 s; going on" in capsys.readouterr().err


# --- a run that goes on


@pytest.mark.parametrize(
    ("rows_there", "kept", "logged_then"),
    [
        (0, 3, [0, 1, 2, 3, 4]),  # a new offline run: the whole history
        (2, 3, [2, 3, 4]),  # W&B lost a row that metrics.jsonl has
        (4, 3, [4]),  # W&B has a row from after the checkpoint, which is logged again now
        (5, 3, []),
    ],
)
def test_each_row_is_logged_once(
    rows_there: int, kept: int, logged_then: list[int], home: Path, fake_wandb: Any
) -> None:
    log = MetricsFile(home / "m.jsonl")
    for step in range(kept):
        log.log_metrics({"x": float(step), "bad": float("nan")}, step=step)
    fake_wandb.rows_there = rows_there
    tracker = Wandb(LoggerConfig(), home, "run", {}, "train")
    for line in read_metrics(log.path):
        replay(line, tracker)
    for step in range(kept, 5):
        tracker.log_metrics({"x": float(step)}, step=step)
    tracker.close(0)
    assert fake_wandb.runs[0].logged == [{"x": float(step), "step": step} for step in logged_then]


def test_an_online_run_goes_on_under_its_id(home: Path, fake_wandb: Any) -> None:
    whole_life(home, LoggerConfig(mode="online"))
    whole_life(home, LoggerConfig(mode="online"))
    (_, first), (_, second) = fake_wandb.asked
    assert (first["id"], first["resume"]) == (None, None)
    assert (second["id"], second["resume"]) == ("abc", "allow")


def test_an_offline_part_is_not_synced_beside_the_whole(home: Path, fake_wandb: Any) -> None:
    whole_life(home, LoggerConfig(mode="offline"))
    part = home / "wandb" / "offline-run-1-abc"
    part.mkdir(parents=True)
    (part / "run-abc.wandb").write_text("a part")
    whole_life(home, LoggerConfig(mode="offline"))
    assert (fake_wandb.asked[1][1]["id"], fake_wandb.asked[1][1]["resume"]) == (None, None)
    assert not part.exists()  # `wandb sync` takes wandb/offline-run-*
    assert (home / "wandb" / "replaced" / part.name / "run-abc.wandb").read_text() == "a part"


def test_a_torn_note_of_the_run_is_as_none(home: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / WANDB_FILE
    for torn in ("", '{"id": "a', "\0\0"):
        path.write_text(torn)
        assert stored_run(home) is None
    path.write_text('{"id": "whole"}')

    def cut(descriptor: int) -> None:
        os.ftruncate(descriptor, 5)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", cut)
    whole_life(home)
    assert stored_run(home) == {"id": "whole"}


def of_lightning(name: str) -> LoggerConfig:
    """What logger=NAME sets."""
    settings: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "logger" / f"{name}.yaml"))
    return LoggerConfig(lightning=settings["lightning"])


def test_csv_has_each_row_once_after_a_replay(tmp_path: Path) -> None:
    for _ in range(2):  # the second time over what the first has left
        (logger,) = lightning_loggers(of_lightning("csv"), tmp_path, {"seed": 3})
        for step in range(3):
            replay({"step": step, "seconds": 1.0, "x": float(step), "bad": None}, logger)
        logger.finalize("success")
    with (tmp_path / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == [{"step": str(step), "x": f"{step}.0"} for step in range(3)]
    assert OmegaConf.load(tmp_path / "csv" / "hparams.yaml") == {"seed": 3}


def test_no_tensorboard_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logger\.lightning\.tensorboard: .*pip install 'vlmft\[tensorboard\]'"):
        require_loggers(of_lightning("tensorboard"))
    require_loggers(of_lightning("csv"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name == "tensorboardX" else None)
    require_loggers(of_lightning("tensorboard"))


def test_tensorboard_has_each_row_once_after_a_replay(tmp_path: Path) -> None:
    proto = pytest.importorskip("tensorboardX.proto.event_pb2", reason="TensorBoard is an extra")
    for _ in range(2):
        (logger,) = lightning_loggers(of_lightning("tensorboard"), tmp_path, {"seed": 3})
        for step in range(3):
            replay({"step": step, "seconds": 1.0, "x": float(step)}, logger)
        logger.finalize("success")
    (file,) = (tmp_path / "tensorboard").glob("events*")
    content, found = file.read_bytes(), []
    while content:  # length (8 bytes), its checksum (4), the event, its checksum (4)
        (length,) = struct.unpack("<Q", content[:8])
        event = proto.Event.FromString(content[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value if value.tag == "x"]
        content = content[16 + length :]
    assert found == [(step, "x", float(step)) for step in range(3)]


def test_no_network_means_offline(home: Path, fake_wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    fake_wandb.fails = "online"
    assert not whole_life(home).failed
    assert [mode for mode, _ in fake_wandb.asked] == ["online", "offline"]


@pytest.mark.parametrize(
    ("configured", "environment", "key", "expected"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),  # whoever says so in the environment is obeyed
        ("auto", "disabled", True, "disabled"),
        ("offline", "online", True, "offline"),
        ("online", None, False, "online"),
    ],
)
def test_mode(
    configured: str,
    environment: str | None,
    key: bool,
    expected: str,
    home: Path,
    fake_wandb: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", CANARY)
    whole_life(home, LoggerConfig(mode=configured))
    assert fake_wandb.asked[0][0] == expected
    assert CANARY not in repr(fake_wandb.asked)


@pytest.mark.slow
def test_the_real_one_offline_writes_below_the_folder_and_no_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setattr(sys, "argv", ["train.py", f"data.token={CANARY}"])
    folder = home / "run"
    folder.mkdir()
    before = set(Path.cwd().iterdir())
    tracker = whole_life(folder)
    assert not tracker.failed
    assert Path(tracker.where).is_dir() and Path(tracker.where).is_relative_to(folder)
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_loses_a_line_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.log_metrics({"train/loss": 1.0}, step=0)
    metrics.path = Path("/dev/full")
    metrics.log_metrics({"train/loss": 2.0}, step=1)
    assert "metrics.jsonl: step 1 is not written" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0]
