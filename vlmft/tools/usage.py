"""What --help prints: settings with type, default or present value, and a line from the schema."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from vlmft.config.entry import conf_dir, forced
from vlmft.config.schema import MISSING
from vlmft.tools.settings import Setting, choices_of, settings_of, written

SHOWN = {
    "train": """model data data.path data.limit_train data.max_new_tokens model.quantization.mode model.train.vision
        model.lora.r model.max_length_tokens model.max_visual_tokens_per_image train.lr train.rows_per_step
        train.rows_per_batch train.gradient_checkpointing trainer.max_epochs trainer.precision evaluation.arms logger
        name resume""",
    "evaluate": """run model data data.path data.limit_test data_options adapter adapters split evaluation.arms
        evaluation.prompts evaluation.servers evaluation.few_shot.k
        evaluation.rows_per_batch trainer.accelerator trainer.precision logger output_root fresh json""",
}
"""Command -> the settings that `python <command>.py --help` shows."""
GROUPS_APART = ("callbacks", "trainer", "experiment", "debug")
"""Shown with them, as choices alone."""


def help_of(
    program: str,
    command: str,
    summary: str,
    schema_class: type,
    examples: Sequence[str],
    arguments: Sequence[str] = (),
    *,
    keys: Sequence[str] = (),
    files: str | None = None,
    width: int | None = None,
) -> str:
    """What `<program> --help` prints: settings with the values that these `arguments` give them.

    All of `schema_class`, or `keys` alone; `files` is the setting that arguments without a key are, `width` where lines
    are folded, in characters.

    Raises:
        HydraException, OmegaConfBaseException, ConfigError: a setting or a choice that there is not.
    """
    values, chosen = _present(command, schema_class, arguments)
    settings = {setting.key: setting for setting in settings_of(schema_class)}
    lines = [f"{program}: {summary}", "", *(f"  {program} {example}" for example in examples), ""]
    lines.append("Settings with their present values, as key=value or --key value:")
    if keys:
        lines += [_line(settings[key], values, chosen, files) for key in keys]
        lines += [
            f"  {key}={written(chosen[key])} ({'|'.join(choices_of(key))})" for key in GROUPS_APART if key in chosen
        ]
        lines += [
            "",
            f"vlmft {command} --help lists all {len(settings)} settings; --cfg job prints their values and runs",
        ]
        lines.append("nothing; -m key=a,b runs several (docs/sweeps.md). Where to begin: docs/quickstart.md")
    else:
        own = [setting for setting in settings.values() if "." not in setting.key and setting.group is None]
        groups = [setting for setting in settings.values() if "." not in setting.key and setting.group is not None]
        lines += [_line(setting, values, chosen, files) for setting in sorted(own, key=lambda one: one.key != files)]
        for group in groups:
            below = [one for one in settings.values() if one.key.startswith(f"{group.key}.")]
            lines += ["", f"{group.key}: {group.doc}"]
            lines += [_line(one, values, chosen, files) for one in ([group] if choices_of(group.key) else []) + below]
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent=" " * 6, break_on_hyphens=False) for line in lines]
    return "\n".join(lines) + "\n"


def _present(command: str, schema_class: type, arguments: Sequence[str]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The values of all settings, and the choice of each group."""
    if not (conf_dir() / f"{command}.yaml").is_file():
        composed = OmegaConf.structured(schema_class)
    else:
        ConfigStore.instance().store(name=f"{command}_schema", node=schema_class)
        overrides = [forced(one) for one in arguments if "=" in one and not one.startswith("-")]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose(command, overrides, return_hydra_config=True)
    values = OmegaConf.to_container(composed)
    assert isinstance(values, dict)
    return values, values.get("hydra", {}).get("runtime", {}).get("choices", {})


def _line(setting: Setting, values: dict[Any, Any], chosen: dict[str, Any], files: str | None) -> str:
    value: Any = values
    for name in setting.key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    value, kind = value if setting.of_member is None else setting.of_member, setting.type_name
    if setting.key in chosen:
        value, kind = chosen[setting.key], "|".join(choices_of(setting.key))
    elif setting.group is not None:
        return f"  {setting.key} (settings)  {setting.doc}"
    shown = f"{setting.key}={written(value)} ({kind})" if value != MISSING else f"{setting.key} ({kind}, required)"
    return f"  {shown}{', or without a key' if setting.key == files else ''}  {setting.doc}"
