"""Loggers. metrics.jsonl is the record of truth; Weights & Biases lives here alone and can never stop a run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import netrc
import os
import queue
import shutil
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vlmft.config.check import ConfigError
from vlmft.config.files import write_whole
from vlmft.config.secrets import redacted, redacted_text
from vlmft.config.trainer_schema import LoggerConfig
from vlmft.training.metrics_file import METRICS_FILE, read_metrics
from vlmft.training.targets import made, target_of

WANDB_FILE = "wandb_run.json"
"""In the folder of a run that was logged to W&B: its id there, and where it is."""
STEP = "step"
SERVICE_SECONDS = 30.0
"""How long W&B may take beyond its own time limits, before it counts as hung."""


class MetricsFile(Logger):
    """Appends one JSON line per logged step: {"step", "seconds", name: value, ...}."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.started = time.monotonic()
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")  # ends a torn line, so that the next one is not appended to it

    def cut_back(self, step: int) -> None:
        """Leaves only what was logged before this optimiser step: a resumed run logs the rest again."""
        kept = [line for line in read_metrics(self.path) if line["step"] is not None and line["step"] < step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: settings are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 3), **_plain(metrics)}
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            print(f"{METRICS_FILE}: step {step} is not written ({error}); the run goes on", file=sys.stderr)


def _plain(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    values = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float, torch.Tensor))}
    return {name: value if abs(value) != float("inf") and value == value else None for name, value in values.items()}


def has_api_key() -> bool:
    """Whether W&B would find a key, without a request: in the environment or in ~/.netrc."""
    try:
        stored = netrc.netrc().hosts
    except (OSError, ValueError, netrc.NetrcParseError):
        stored = {}
    return bool(os.environ.get("WANDB_API_KEY")) or any("wandb" in host for host in stored)


PACKAGES = {
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "MLFlowLogger": ("mlflow",),
    "CometLogger": ("comet_ml",),
}
"""Lightning's logger -> modules of which it needs one, none of them part of vlmft's own requirements."""
OF_A_RUN = ("checkpoints", "adapter", "predictions", "evaluations", "wandb")
"""Folders in a run folder that no logger may have."""


def require_loggers(config: LoggerConfig) -> None:
    """
    Raises:
        ConfigError: a logger's package is not installed, or its name is that of another folder of a run.
    """
    for name, settings in config.lightning.items():
        needed = PACKAGES.get(settings["_target_"].rpartition(".")[2]) if settings is not None else None
        if needed and not any(map(importlib.util.find_spec, needed)):
            raise ConfigError(
                f"logger.lightning.{name}: Expected {needed[0]} to be installed, got none; "
                f"pip install 'vlmft[{name}]', or take logger=csv"
            )
        if name in OF_A_RUN or not name.isidentifier():
            raise ConfigError(f"logger.lightning.{name}: Expected a name for a folder of its own; take another")


def lightning_loggers(config: LoggerConfig, folder: Path, settings: Mapping[str, Any]) -> list[Logger]:
    """Lightning's own, where asked for; they are given all `settings` of the run once, without secrets.

    Those that keep files in the run folder begin anew: a run that goes on is replayed into them.
    """
    loggers: list[Logger] = []
    for name, arguments in config.lightning.items():
        if arguments is None:
            continue
        key = f"logger.lightning.{name}"
        if "save_dir" in signature(target_of(key, arguments)).parameters and arguments.get("save_dir") is None:
            shutil.rmtree(folder / name, ignore_errors=True)
            arguments = {**arguments, "save_dir": str(folder / name)}
        logger = made(key, arguments)
        if not isinstance(logger, Logger):
            raise ConfigError(f"{key}: Expected a lightning Logger, got a {type(logger).__name__}")
        logger.log_hyperparams(redacted(dict(settings)))
        loggers.append(logger)
    return loggers


def replay(line: Mapping[str, Any], logger: Logger) -> None:
    """Logs a line of metrics.jsonl again."""
    values = {name: value for name, value in line.items() if name not in (STEP, "seconds") and value is not None}
    logger.log_metrics(values, line[STEP])


class Wandb(Logger):
    """Weights & Biases on a thread of its own: whatever it raises is printed once, and the run goes on without it.

    Logging hands over and returns. A run waits for W&B at its start and at its end alone, with a limit each time.
    """

    def __init__(
        self,
        config: LoggerConfig,
        folder: Path,
        run_name: str,
        settings: Mapping[str, Any],
        job: str,
        group: str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.folder = config, folder
        self.run: Any = None
        self.id = self.where = "none"
        """The run's page, or the folder of an offline run."""
        self.rows_there = 0
        """Rows that a resumed W&B run has already, and that are logged once more."""
        self.failed = self.hung = False
        self.seconds = 0.0
        """Time that the run has waited for W&B."""
        self._actions: queue.SimpleQueue[tuple[Callable[[], None], threading.Event, bool]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="wandb", daemon=True).start()
        about = {"name": run_name, "group": config.group or group or run_name, "job_type": job}
        start_seconds = 2 * config.init_timeout_seconds + SERVICE_SECONDS
        self._do(lambda: self._start(about, redacted(settings)), start_seconds)

    def _do(self, action: Callable[[], None], wait_seconds: float = 0.0, *, last: bool = False) -> None:
        """Hands an action over; with `wait_seconds`, waits at most so long for it and all before it."""
        started, done = time.monotonic(), threading.Event()
        self._actions.put((action, done, last))
        if wait_seconds and not self.hung and not done.wait(wait_seconds):
            self.hung = True
            self._give_up(f"no answer in {wait_seconds:g} s")
        self.seconds += time.monotonic() - started

    def _work(self) -> None:
        last = False
        while not last:
            action, done, last = self._actions.get()
            if last or not self.failed:  # a run that failed to log must still be ended, or W&B waits for it at exit
                try:
                    action()
                except Exception as error:  # noqa: BLE001 - whatever a tracker does wrong, the run is worth more
                    self._give_up(f"{type(error).__name__}: {error}")
            done.set()

    def _give_up(self, why: str) -> None:
        self.failed = True
        print(redacted_text(f"wandb: {why}; going on with {METRICS_FILE} alone"), file=sys.stderr)

    def _start(self, about: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        import wandb

        config, mode = self.config, self.config.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")
        # x_disable_meta: the metadata file holds sys.argv, where people put secrets.
        quiet = wandb.Settings(
            init_timeout=config.init_timeout_seconds,
            finish_timeout=config.finish_timeout_seconds,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            x_disable_meta=True,
            save_code=False,
        )
        arguments: dict[str, Any] = {
            "project": redacted(config.project),
            "entity": redacted(config.entity),
            # Absolute: where WANDB_SERVICE is set, a service with another working directory writes it.
            "dir": str(self.folder.absolute()),
            "config": dict(settings),
            "tags": redacted(config.tags),
            "settings": quiet,
            **redacted(about),
        }
        before = self._before(mode)
        again: dict[str, Any] = {"id": before, "resume": "allow" if before else None}
        try:
            self.run = wandb.init(mode=mode, **arguments, **again)  # type: ignore[arg-type]  # wandb checks the mode
        except Exception as error:  # noqa: BLE001 - no key, no network, or its service did not start on a busy machine
            self.run = wandb.init(mode="offline", **arguments)
            print(redacted_text(f"wandb: {error}; logging offline"), file=sys.stderr)
        self.id, self.rows_there = str(self.run.id), int(self.run.starting_step)
        own = Path(self.run.dir).parent
        own = own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own
        self.where = str(own if self.run.offline else self.run.url or mode)
        stored = json.dumps({"id": self.id, "where": self.where, "group": about["group"]})
        write_whole(self.folder / WANDB_FILE, (stored + "\n").encode())
        self.run.define_metric("*", step_metric=STEP)
        for name in ("train/loss", "val/loss"):
            self.run.define_metric(name, step_metric=STEP, summary="min")

    def _before(self, mode: str) -> str | None:
        """Id of the W&B run of an earlier process of this folder, where W&B can go on with it.

        An offline run cannot be resumed, and parts of one id overwrite each other when they are synced. So the whole
        history is replayed into a new offline run, and the earlier part is put where `wandb sync` does not look.
        """
        for part in (self.folder / "wandb").glob("offline-run-*"):
            (part.parent / "replaced").mkdir(exist_ok=True)
            part.rename(part.parent / "replaced" / part.name)
        before = stored_run(self.folder)
        return before["id"] if before and mode == "online" else None

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
        values = {**_plain(metrics), STEP: step}
        self._do(lambda: self._log_row(values))

    def _log_row(self, values: Mapping[str, Any]) -> None:
        """One row of the history. A resumed run logs the same rows in the same order: those there are left out."""
        if self.rows_there > 0:
            self.rows_there -= 1
        else:
            self.run.log(values)

    def keep_best(self, name: str) -> None:
        """Makes W&B show the largest value of this metric, not the last."""
        self._do(lambda: self.run.define_metric(name, step_metric=STEP, summary="max"))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, own_row: bool = True
    ) -> None:
        """A table with plain cells and pictures; without `own_row` it goes with the next metrics that are logged."""
        self._do(lambda: self._log_table(name, columns, rows, own_row))

    def _log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], own_row: bool) -> None:
        import wandb

        table = wandb.Table(columns=list(columns))
        with self._staging():
            for row in rows:
                cells = [wandb.Image(c, file_type="jpg") if isinstance(c, PIL.Image.Image) else c for c in row]
                table.add_data(*cells)
            self.run.log({name: table}, commit=own_row)

    @contextlib.contextmanager
    def _staging(self) -> Iterator[None]:
        """W&B would put what waits for upload into the home folder, where an offline run leaves it behind."""
        before = os.environ.get("WANDB_DATA_DIR")
        os.environ["WANDB_DATA_DIR"] = before or str((self.folder / "wandb").absolute())
        try:
            yield
        finally:
            if before is None:
                del os.environ["WANDB_DATA_DIR"]

    def log_folder(self, folder: Path, kind: str) -> None:
        """Uploads a folder as artifact `<its name>-<run id>`."""
        self._do(lambda: self._log_folder(folder, kind))

    def _log_folder(self, folder: Path, kind: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{folder.name}-{self.id}", kind)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            # immutable: uploaded from where it is, not from a copy
            artifact.add_file(str(file), str(file.relative_to(folder)), policy="immutable")
        with self._staging():
            self.run.log_artifact(artifact)

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Final values, such as test accuracy per arm; as a row, because a W&B sweep looks at what was logged."""
        if values:
            self._do(lambda: self.run.log(dict(values)))

    def close(self, exit_code: int) -> None:
        """Ends the W&B run with the run's own exit code, so that a crash is not shown as finished."""
        self._do(lambda: self._finish(exit_code), self.config.finish_timeout_seconds + SERVICE_SECONDS, last=True)
        if self.hung:
            with contextlib.suppress(AttributeError, KeyError):
                # W&B's hook at exit would wait for its process for ever. There is no public way to say that it hangs.
                connection = sys.modules["wandb"].setup()._connection
                connection._cleanup()
                connection._proc._process.kill()

    def _finish(self, exit_code: int) -> None:
        if self.run is not None:
            self.run.finish(exit_code=exit_code)


def stored_run(folder: Path) -> dict[str, str] | None:
    """Id, place and group of the W&B run that this folder's run was logged to, if it was; None for a torn file."""
    path = folder / WANDB_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        return None
