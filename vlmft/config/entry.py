"""What both Hydra entries share: register the schemas, and answer a user's mistake with one line and exit code 2."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from vlmft.config import schema
from vlmft.config.check import ConfigError, all_keys, nearest, one_line
from vlmft.sample import BadRowError

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register_schemas() -> None:
    """Makes the typed roots known to Hydra; `conf/train.yaml` and `conf/evaluate.yaml` start from them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=schema.TrainConfig)
    store.store(name="evaluate_schema", node=schema.EvaluateConfig)


def run_entry(main: Callable[[], None]) -> None:
    """Calls a Hydra main function; a mistake of the user's ends as `error: ...` on stderr and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own several lines and exit 1; we want the exception
    register_schemas()
    try:
        main()
    except (ConfigError, BadRowError) as error:
        _mistake(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _mistake(explained(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _mistake(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_MISTAKE)


def explained(error: Exception) -> str:
    """One line for what Hydra refused, with the nearest legal name."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '([^']+)'", text)
        if found and "/" in found[1]:
            group, _, choice = found[1].rpartition("/")
            choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
            return f"{group}={choice}: no such choice; {nearest(choice, choices)}" if choices else f"no group {group!r}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        key = unknown[1].split("@")[0]
        legal = sorted({*all_keys(schema.TrainConfig), *all_keys(schema.EvaluateConfig)})
        if key not in legal:
            return f"{key}: no such setting; {nearest(key, legal) if _close(key, legal) else 'see --help'}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return f"{text.splitlines()[0]}: {one_line(error.__cause__)}"  # type: ignore[arg-type]
    return one_line(error)


def _close(key: str, legal: list[str]) -> bool:
    return nearest(key, legal).startswith("did you mean")
