"""What the Hydra entries share: schemas, checked settings, and one line with exit code 2 for a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmft.config import schema
from vlmft.config.check import Config, ConfigError, checked, nearest, nearest_key, one_line, schema_node
from vlmft.config.failures import machine_failure
from vlmft.config.hydra_plugins import register_plugins, store_choices
from vlmft.config.secrets import read_dotenv, redacted_override, redacted_text
from vlmft.config.setting_types import all_settings
from vlmft.config.synonyms import instead
from vlmft.sample import BadRowError

EXIT_FAILURE, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130
OPEN_MAPPINGS = ("data.options", "data_options", "adapters")
"""Their keys are a dataset's own, so that Hydra knows none of them."""
MEMBERS = "evaluation.servers"
"""A mapping of groups of settings, which OmegaConf takes as a whole alone."""
WITH_TARGETS = ("callbacks", "logger.lightning", "trainer.strategy", "trainer.profiler", "trainer.max_time")
"""The same of a class's own arguments."""


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Makes the typed roots known to Hydra; `conf/train.yaml` and `conf/evaluate.yaml` start from them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=schema_node(schema.TrainConfig))
    store.store(name="evaluate_schema", node=schema_node(schema.EvaluateConfig))
    store_choices()


def entry(config_name: str, schema_class: type[Config]) -> Callable[[Callable[[Config], None]], Callable[[], None]]:
    """Makes `main(config)` a Hydra app over conf/<config_name>.yaml that gets its settings checked; see `run_entry`."""

    def decorate(main: Callable[[Config], None]) -> Callable[[], None]:
        composed = False

        @functools.wraps(main)
        def job(cfg: DictConfig) -> None:
            nonlocal composed
            composed = True
            with mistakes_in_one_line():  # here already: Hydra writes a line of its own about an exception in a job
                _drop_sweep_file()
                with advice_for_other_tools_names(sys.argv[1:], schema_class):
                    config = checked(cfg, schema_class)
                _leave_the_test_split_alone(config)
                main(config)

        app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)

        @functools.wraps(main)
        def start() -> None:
            nonlocal composed
            composed = False
            flags = _known_flags()
            sys.argv[1:] = map(forced, sys.argv[1:])
            if flags.multirun or flags.info or any(word.startswith("hydra.mode=") for word in sys.argv):
                register_plugins()  # a single run has no use for sweeps, whose code takes time to import
            try:
                with advice_for_other_tools_names(sys.argv[1:], schema_class):
                    if flags.cfg in ("job", "all") and flags.package is None:
                        _show_checked(app, schema_class)
                    else:
                        app()
            except (ValueError, RuntimeError, ImportError) as error:  # of Hydra: about a flag, or about a plugin
                of_hydra = isinstance(error, ValueError) or "plugin" in str(error).lower()
                if composed or isinstance(error, OmegaConfBaseException) or not of_hydra:
                    raise
                raise ConfigError(_in_hydras_words(error)) from error

        return start

    return decorate


def run_entry(main: Callable[[], None]) -> None:
    """Calls `main`; a mistake of the user's ends as `error: ...` on stderr and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own several lines and exit 1; we want the exception
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        # Read when torch is imported. Threads that wait in a loop take the core that the thread they wait for needs.
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", KMP_BLOCKTIME="0")
    # Set before anything imports it: on a CPU bitsandbytes warns of a kernel that we do not want (models/load.py).
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    sys.excepthook = _redacted_traceback
    register_schemas()
    with mistakes_in_one_line():
        read_dotenv(Path(".env"))
        main()


def _redacted_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redacted_text("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _drop_sweep_file() -> None:
    """Hydra has written a sweep's whole config in clear, those secrets with it that an experiment's YAML file holds."""
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        (Path(settings.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)


def _leave_the_test_split_alone(config: object) -> None:
    """A job of another launcher than ours, which sees to it itself."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and isinstance(config, schema.TrainConfig) and config.test:
        raise ConfigError("test: Expected false in a sweep, got true; the winner alone meets the test split")


def _show_checked(app: Callable[[], None], schema_class: type[Config]) -> None:
    """`--cfg`: Hydra prints what it composed and calls no job; here it is checked, too."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        app()
    composed = OmegaConf.create(shown.getvalue())
    assert isinstance(composed, DictConfig)
    composed.pop("hydra", None)
    checked(composed, schema_class)
    print(shown.getvalue(), end="")


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    try:
        yield
    except (ConfigError, BadRowError) as error:
        _mistake(str(error))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _mistake(explained(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (OSError, RuntimeError) as error:
        if (sentence := machine_failure(error)) is None:
            raise
        _mistake(sentence, EXIT_FAILURE)


@contextlib.contextmanager
def advice_for_other_tools_names(arguments: Sequence[str], schema_class: type) -> Iterator[None]:
    """Where settings are refused inside: what to write for the names and values of other tools among `arguments`.

    Raises:
        ConfigError: there are some; else what was raised inside.
    """
    try:
        yield
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        line = instead(arguments, all_settings(schema_class), explained(error))
        if line is None:
            raise
        raise ConfigError(line) from error


def _mistake(message: str, code: int = EXIT_MISTAKE) -> NoReturn:
    print(redacted_text(f"error: {' '.join(message.split())}"), file=sys.stderr)
    sys.exit(code)


def _known_flags() -> argparse.Namespace:
    """Those of Hydra; about another one its parser would print its whole usage."""

    def refuse(message: str) -> NoReturn:
        _mistake(f"{message}; settings are written without dashes, as in train.lr=1e-4, and --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args()
    if flags.experimental_rerun is not None:
        _mistake("--experimental-rerun reads a pickle, which can run code; give the overrides again instead")
    return flags


def forced(override: str) -> str:
    """`data.options.rows=3` as `++data.options.rows=3`: without the pluses, Hydra takes known keys only.

    Raises:
        ConfigError: the value looks like a secret.
    """
    if redacted_override(override) != override:
        raise ConfigError(
            f"{override.partition('=')[0]}: Expected no secret in a command, which other users and the shell's "
            "history see; set it in the environment, or in a file .env that git ignores"
        )
    key, equals, value = override.partition("=")
    if not value.isascii() and not {"'", '"'} & {*value}:  # Hydra's grammar wants other letters in quotes
        apart = r"[^][{},:\s](?:[^][{},:]*[^][{},:\s])?" if value.startswith(("[", "{")) else r"[^,]+"
        override = key + equals + re.sub(apart, lambda part: part[0] if part[0].isascii() else f"'{part[0]}'", value)
    if key.startswith(f"{MEMBERS}."):
        value = override.partition("=")[2]
        for name in reversed(key.removeprefix(f"{MEMBERS}.").split(".")):
            value = f"{{{name}: {value}}}"
        override = f"{MEMBERS}={value}"
    is_open = override.startswith(tuple(key + sign for key in (*OPEN_MAPPINGS, MEMBERS) for sign in ".="))
    is_open |= override.startswith(tuple(f"{key}." for key in WITH_TARGETS))
    return f"++{override}" if is_open else override


def explained(error: Exception) -> str:
    """One line for what Hydra refused, with the nearest legal name."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    file = re.match(r"In '(\w+/[^']+)'", text)
    prefix = f"in {file[1]}.yaml: " if file else ""
    unknown = re.search(r"Could not override '([^'@]+)'\.", text)
    if isinstance(cause, ConfigError):  # raised by a plugin of ours while Hydra made it
        return str(cause)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OmegaConfBaseException):
        return one_line(error)
    if isinstance(error, MissingConfigException):
        return _no_such_choice(text)
    if isinstance(error, OverrideParseException):
        advice = """quotes of their own around special characters, as in 'data.path="C:/My Data"'"""
        return f"{str(error.override).lstrip('+')}: Expected key=value, with {advice}"
    if prefix and "Key 'experiment' not in" in text:
        return f"{prefix}Expected '# @package _global_' as the first line of an experiment, got none; add it"
    if isinstance(cause, OmegaConfBaseException):
        return prefix + one_line(cause)
    if unknown:  # as a group, so that it is not said of which schema
        legal = {*all_settings(schema.TrainConfig), *all_settings(schema.EvaluateConfig)} - {unknown[1]}
        return f"{prefix}{unknown[1]}: no such setting; {nearest_key(unknown[1], sorted(legal))}"
    return _in_hydras_words(error)


def _no_such_choice(text: str) -> str:
    missing = re.search(r"Could not find '(?:((?:hydra/)?[^'/]+)/)?([^']+)'", text)
    listed = re.search(r"Available options in .*\n((?:\t.*\n?)+)", text)
    if missing and missing[1] and listed:
        choices = listed[1].split()
        advice = nearest(missing[2], choices)
        listing = "" if advice.startswith("expected") else f" (there are {', '.join(choices)})"
        return f"{missing[1]}={missing[2]}: no such choice; {advice}{listing}"
    return " ".join(text.split())


def _in_hydras_words(error: Exception) -> str:
    """Without its advice on pluses and its links."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not re.match(r"See https?:|To append to", line))
    if "Config group override must be" in text:
        nulls = " ".join(argument for argument in sys.argv[1:] if argument.endswith("=null"))
        return f"{nulls}: Expected one of the group's choices, got null; logger=none is one, for instance"
    return text
