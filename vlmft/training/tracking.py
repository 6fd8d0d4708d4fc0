"""Loggers. metrics.jsonl is the record of truth; Weights & Biases lives here alone and can never stop a run."""

from __future__ import annotations

import json
import netrc
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vlmft.config.schema import LoggerConfig

# Lightning adds the epoch to whatever is logged; it is a field of its own here.
METRICS_FILE = "metrics.jsonl"


class MetricsFile(Logger):
    """Appends one JSON line per logged step: {"step", "seconds", name: value, ...}."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.started = time.monotonic()
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")  # ends a torn line, so that the next one is not glued to it

    def cut_back(self, step: int) -> None:
        """Leaves only what was logged before this optimiser step: a resumed run logs the rest again."""
        kept = [line for line in read_metrics(self.path) if line["step"] is not None and line["step"] < step]
        beside = self.path.with_name(f".{self.path.name}.partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        beside.replace(self.path)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings stand in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 3), **_plain(metrics)}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    values = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float, torch.Tensor))}
    return {name: value if abs(value) != float("inf") and value == value else None for name, value in values.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last line is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def has_api_key() -> bool:
    """Whether W&B would find a key, without asking anybody: in the environment or in ~/.netrc."""
    try:
        stored = netrc.netrc().hosts
    except (OSError, ValueError, netrc.NetrcParseError):
        stored = {}
    return bool(os.environ.get("WANDB_API_KEY")) or any("wandb" in host for host in stored)


class Wandb(Logger):
    """Weights & Biases behind a guard: whatever it raises is printed once, and the run goes on without it."""

    def __init__(
        self, config: LoggerConfig, folder: Path, run_name: str, settings: Mapping[str, Any], job: str
    ) -> None:
        super().__init__()
        self.run: Any = None
        self.id = self.where = "none"
        """The run's page, or the folder of an offline run."""
        self.failed = False
        self.seconds = 0.0
        self._guarded(lambda: self._start(config, folder, run_name, settings, job))

    def _guarded(self, action: Callable[[], None]) -> None:
        if self.failed:
            return
        started = time.monotonic()
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a tracker does wrong, the run is worth more
            self.failed = True
            print(f"wandb: {type(error).__name__}: {error}; going on with {METRICS_FILE} alone", file=sys.stderr)
        self.seconds += time.monotonic() - started

    def _start(self, config: LoggerConfig, folder: Path, run_name: str, settings: Mapping[str, Any], job: str) -> None:
        import wandb

        mode = config.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")
        # x_disable_meta: the metadata file holds sys.argv, where people put secrets.
        quiet = wandb.Settings(
            init_timeout=config.init_timeout_seconds, silent=True, console="off", x_disable_meta=True, save_code=False
        )
        arguments: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "name": run_name,
            "dir": str(folder),
            "config": dict(settings),
            "tags": list(config.tags),
            "job_type": job,
            "settings": quiet,
        }
        try:
            self.run = wandb.init(mode=mode, **arguments)  # type: ignore[arg-type]  # wandb checks the name itself
        except (
            wandb.errors.CommError,
            wandb.errors.UsageError,
            wandb.errors.AuthenticationError,
            TimeoutError,
        ) as error:
            print(f"wandb: {error}; logging offline", file=sys.stderr)
            self.run = wandb.init(mode="offline", **arguments)
        self.id = str(self.run.id)
        self.where = str(Path(self.run.dir).parent if self.run.offline else self.run.url)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.id

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings went in at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._guarded(lambda: self.run.log({**_plain(metrics), "step": step}))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Final values, such as test accuracy per arm."""
        self._guarded(lambda: self.run.summary.update(dict(values)))

    def close(self, exit_code: int) -> None:
        """Ends the W&B run with the run's own exit code, so that a crash is not shown as finished."""
        if self.run is not None:
            self.failed = False  # a run that failed to log must still be ended, or W&B waits for it at exit
            self._guarded(lambda: self.run.finish(exit_code=exit_code))
