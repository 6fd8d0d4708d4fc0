"""The run folder: outputs/<model>-<data>/<name, or hash of the config>, and the files that are written first."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vlmft.config.check import ConfigError, checked
from vlmft.config.files import write_whole
from vlmft.config.processes import is_queued_again
from vlmft.config.schema import OWN_CHECKPOINTS, EvaluateConfig, Scale, TrainConfig
from vlmft.config.secrets import REDACTED, redacted, redacted_override, redacted_text
from vlmft.data.ledger import LEDGER_FILE, Ledger
from vlmft.run.lock import locked

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
CARD_FILE = "data_card.json"
ADAPTER = "adapter"
"""Folder in it of what was trained."""
FOLDER_FILE_VARIABLE = "VLMFT_RUN_FOLDER_FILE"
"""Environment variable by which a sweep asks its job for the run folder: a file to write its path into."""
OUTSIDE_THE_HASH = (
    "name",
    "output_root",
    "task_name",
    "tags",
    "extras",
    "logger",
    "resume",
    "scale",
    "verbose",
    "cache",
)
"""Settings that change no result, `scale` because of what it puts into others; so do those of `INNER`."""
ROUNDING = (
    ("train", "rows_per_batch"),
    ("train", "tokens_per_batch"),
    ("train", "compile"),
    ("evaluation", "tokens_per_batch"),
    ("trainer", "threads"),
    ("trainer", "devices"),
    ("trainer", "num_nodes"),
    ("trainer", "strategy"),
)
"""These change memory, speed and rounding: a run goes on with others where memory is short."""
INNER = (
    *ROUNDING,
    ("data", "workers"),
    ("trainer", "memory_gib"),
    ("trainer", "profiler"),
    ("trainer", "enable_progress_bar"),
    ("trainer", "enable_model_summary"),
    ("evaluation", "verbose"),
    ("evaluation", "servers"),
)
OF_THE_MACHINE = (
    "trainer.accelerator",
    "trainer.precision",
    "train.gradient_checkpointing",
    "callbacks",
)
"""Settings that people change to get an interrupted run going again, and that make another run of it."""


def plain(config: Any) -> Any:
    """Dataclasses as nested dicts of plain values, enums by name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, (list, tuple)) else config


def settings_of_results(config: TrainConfig | EvaluateConfig) -> dict[str, Any]:
    """All settings but those that change no result, nested."""
    settings = {key: value for key, value in plain(config).items() if key not in OUTSIDE_THE_HASH}
    for group, key in INNER:
        (settings.get(group) or {}).pop(key, None)
    if settings.get("ckpt_path") in OWN_CHECKPOINTS:
        settings["ckpt_path"] = None
    return settings


def config_hash(config: TrainConfig | EvaluateConfig) -> str:
    """Ten hex digits: equal settings, equal folder. Of unredacted settings: redacted ones are all equal."""
    settings = settings_of_results(config)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def folder_of(config: TrainConfig) -> Path:
    name = config.name or config_hash(config)
    folder_name = f"smoke-{name}" if config.scale == Scale.smoke else name
    return Path(config.output_root) / (config.task_name or f"{config.model.name}-{config.data.name}") / folder_name


def find_folder(config: TrainConfig) -> tuple[Path, bool]:
    """The folder for this run, made or not, and whether its run is finished; a new and an interrupted one are not.

    Raises:
        ConfigError: the folder holds a run and `resume` is not set, or it is a run of other settings; or `resume` is
            set, there is no such run, and an interrupted one differs in what it runs on alone.
    """
    folder = folder_of(config)
    finished = (folder / SUMMARY_FILE).exists()
    if not (folder / CONFIG_FILE).exists():
        is_named = config.name is not None or FOLDER_FILE_VARIABLE in os.environ
        if resumes(config) and not is_named and not is_queued_again():
            _refuse_to_leave_behind(config, folder.parent)
    else:
        if not resumes(config):
            raise ConfigError(
                f"name: {folder} holds {'a finished' if finished else 'an interrupted'} run of these settings; "
                f"{'give this one another name= or seed=' if finished else 'go on with it by resume=true'}"
            )
        before = read_run(str(folder))
        if config_hash(before) != config_hash(config):
            raise ConfigError(
                f"name: {folder} holds a run of other settings; resume it with its own, or give a new name="
            )
    return folder, finished


def resumes(config: TrainConfig) -> bool:
    return config.resume or config.ckpt_path in OWN_CHECKPOINTS or is_queued_again()


def _refuse_to_leave_behind(config: TrainConfig, parent: Path) -> None:
    """Names an interrupted run that differs in `OF_THE_MACHINE` alone: it is what resume=true is meant for."""
    mine = _flat(settings_of_results(config))
    for path in sorted(parent.glob(f"*/{CONFIG_FILE}")):
        if (path.parent / SUMMARY_FILE).exists():
            continue
        try:
            other = _flat(settings_of_results(read_run(str(path.parent))))
        except ConfigError:  # of an earlier version
            continue
        keys = [key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key)]
        if all(key.startswith(OF_THE_MACHINE) for key in keys):
            key = sorted(keys)[0]
            raise ConfigError(
                f"{key}: resume=true finds no run with {key}={mine.get(key)}, but {path.parent} is interrupted and has "
                f"{other.get(key)}; go on with it by {key}={other.get(key)}, or start a new one with resume=false"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
        flat.update(inner)
    return flat


def begun(config: TrainConfig) -> TrainConfig | None:
    """The settings that the run which goes on began with; None where it is a new one."""
    folder = folder_of(config)
    is_there = resumes(config) and (folder / CONFIG_FILE).is_file()
    return read_run(str(folder)) if is_there else None


def rounding_note(config: TrainConfig) -> str | None:
    """That a run goes on with other batch sizes or threads than it began with; None where they are the same."""
    folder = folder_of(config)
    before = plain(read_run(str(folder))) if (folder / CONFIG_FILE).exists() else plain(config)
    changed = [
        f"{group}.{key} is {plain(config)[group][key]} instead of {before[group][key]}"
        for group, key in ROUNDING
        if plain(config)[group][key] != before[group][key]
    ]
    return f"{' and '.join(changed)}: the result may differ by rounding" if changed else None


def make_folder(config: TrainConfig) -> Path:
    """Makes a new run's folder and puts its settings there; one that has them stays as it is."""
    folder = folder_of(config)
    if not (folder / CONFIG_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "environment.json", environment())
        write_whole(folder / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(redacted(plain(config)))).encode())
    return folder


@contextlib.contextmanager
def opened(config: TrainConfig, ledger: Ledger) -> Iterator[Callable[[TrainConfig], None]]:
    """Holds the run's folder: one that is there at once, a new one from when what is yielded makes it with the settings
    that it is called with.

    Raises:
        ConfigError: another process has it.
    """
    folder = folder_of(config)
    is_new = not (folder / CONFIG_FILE).exists()
    with contextlib.ExitStack() as held:

        def make(config: TrainConfig) -> None:
            if is_new:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
                find_folder(config)  # once more: another process may have made it meanwhile
                make_folder(config)
            ledger.keep(folder / LEDGER_FILE, anew=is_new)

        if not is_new:
            held.enter_context(locked(folder))
        yield make


def report_folder(folder: Path) -> None:
    """Answers a sweep that asks which folder its job took: only the job knows, because it infers settings first."""
    if FOLDER_FILE_VARIABLE in os.environ:
        write_whole(Path(os.environ[FOLDER_FILE_VARIABLE]), str(folder).encode())


def read_run(folder: str) -> TrainConfig:
    """The config of a run folder, checked against today's schema.

    Raises:
        ConfigError: not a run folder, a key that no longer exists, or a setting that was stored redacted and without
            which it would be another run.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"run: there is no {CONFIG_FILE} in {folder!r}; give the folder that train.py printed")
    loaded = OmegaConf.load(path)
    lost = _redacted_keys(OmegaConf.to_container(loaded))
    lost = [key for key in lost if not key.startswith("evaluation.servers.")]  # asked by the command alone
    if lost := [key for key in lost if key.split(".")[0] not in OUTSIDE_THE_HASH]:
        raise ConfigError(
            f"run: Expected all settings in {path}, got {REDACTED} for {', '.join(lost)}, which looked like a secret; "
            "write its value there by hand, and give secrets in the environment instead of in settings"
        )
    return checked(loaded, TrainConfig, stored=True)  # type: ignore[arg-type]


def _redacted_keys(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _redacted_keys(item, f"{key}.{name}".lstrip("."))]
    if isinstance(value, list):
        return [found for item in value for found in _redacted_keys(item, key)]
    return [key] if isinstance(value, str) and REDACTED in value else []


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def groups_of(card: Mapping[str, Any], split: str) -> int | None:
    """Independent groups of a split's rows by data_card.json, scaled where only some were read; None if unknown."""
    groups, rows = card.get("groups", {}).get(split), card["splits"].get(split)
    return round(groups["n"] * rows["rows"] / max(1, rows["looked_at"])) if groups and rows else None


LIBRARIES = (
    "vlmft",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "wandb",
)


def environment() -> dict[str, str]:
    """Versions, platform, and the checkout's commit where there is one."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {**versions, "python": platform.python_version(), "platform": platform.platform(), "commit": _commit()}


def _commit() -> str:
    where = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        found = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


def program() -> list[str]:
    """What follows `python` on the command line that starts this program again: a script, or -m and a module."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def is_installed_command() -> bool:
    """Whether this is `vlmft train` or `vlmft evaluate`, and not a script of a clone."""
    return program()[-1].startswith("vlmft.tools.")


def command_line() -> str:
    """How this program was called, without secrets."""
    name = Path(sys.argv[0])
    called = ["vlmft", name.stem] if is_installed_command() else ["python", name.name]
    return redacted_text(" ".join([*called, *map(redacted_override, sys.argv[1:])]))
