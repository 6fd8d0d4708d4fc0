"""What --help prints: settings with type, default or present value, and a line from the schema."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vlmft.config.entry import conf_dir, forced
from vlmft.tools.settings import Setting, choices_of, chosen_by_default, settings_of, written

SHOWN = {
    "train": """model data data.path data.limit_train data.max_new_tokens model.quantization.mode model.train.vision
        model.lora.r model.max_length_tokens model.max_visual_tokens_per_image train.lr train.rows_per_step
        train.rows_per_batch train.gradient_checkpointing trainer.max_epochs trainer.precision evaluation.arms logger
        name resume""",
    "evaluate": """run model data data.path data.limit_test data_options adapter adapters split evaluation.arms
        evaluation.prompts evaluation.few_shot.k evaluation.few_shot.draws evaluation.rows_per_batch trainer.accelerator
        trainer.precision logger output_root fresh json""",
}
"""Command -> the settings that `python <command>.py --help` shows."""
GROUPS_APART = ("callbacks", "trainer", "experiment", "debug")


def overview(
    command: str,
    summary: str,
    schema_class: type,
    examples: Sequence[str],
    arguments: Sequence[str],
    *,
    width: int | None = None,
) -> str:
    """What `python <command>.py ... --help` prints: twenty settings with the values that these `arguments` give them.

    Raises:
        HydraException, OmegaConfBaseException, ConfigError: a setting or a choice that there is not.
    """
    overrides = [forced(one) for one in arguments if "=" in one and not one.startswith("-")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = OmegaConf.to_container(compose(command, overrides, return_hydra_config=True))
    assert isinstance(composed, dict)
    chosen = composed["hydra"]["runtime"]["choices"]
    known = {setting.key: setting for setting in settings_of(schema_class)}
    lines = [f"python {command}.py: {summary}", "", *(f"  python {command}.py {example}" for example in examples), ""]
    lines.append("Settings with their present values, as key=value or --key value:")
    lines += [_present(known[key], composed, chosen) for key in SHOWN[command].split()]
    lines += [
        f"  {group}={written(chosen[group])}  ({'|'.join(choices_of(group))})"
        for group in GROUPS_APART
        if group in chosen
    ]
    lines += [
        "",
        f"vlmft {command} --help lists all {len(known)} settings; --cfg job prints their values and runs nothing;",
    ]
    lines.append("-m key=a,b runs several (docs/sweeps.md). Where to begin: docs/quickstart.md")
    return _folded(lines, width)


def _present(setting: Setting, composed: dict[Any, Any], chosen: dict[str, Any]) -> str:
    kind, value = setting.type_name, composed
    for name in setting.key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if choices := choices_of(setting.key):
        kind, value = "|".join(choices), chosen.get(setting.key)
    first_sentence = re.split(r"(?<=[.;]) (?![a-z])", setting.doc)[0]
    return f"  {setting.key}={written(value)}  ({kind})  {first_sentence}"


def _folded(lines: Sequence[str], width: int | None) -> str:
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent=" " * 6, break_on_hyphens=False) for line in lines]
    return "\n".join(lines) + "\n"


def help_of(
    command: str,
    summary: str,
    schema_class: type,
    examples: Sequence[str],
    *,
    files: str | None = None,
    width: int | None = None,
) -> str:
    """The text; `files` is the setting that arguments without a key are, `width` where lines are folded, in
    characters."""
    settings = [*settings_of(schema_class)]
    chosen = chosen_by_default(command)
    lines = [f"vlmft {command}: {summary}", "", *(f"  vlmft {command} {example}" for example in examples), ""]
    lines.append("Settings, as key=value or --key value:")
    own = [setting for setting in settings if "." not in setting.key and setting.group is None]
    lines += [_line(setting, files) for setting in sorted(own, key=lambda setting: setting.key != files)]
    for setting in settings:
        if "." not in setting.key and setting.group is not None:
            below = [one for one in settings if one.key.startswith(f"{setting.key}.")]
            lines += ["", *_head(setting, chosen.get(setting.key)), *(_line(one, files) for one in below)]
    return _folded(lines, width)


def _head(group: Setting, chosen: str | None) -> Iterator[str]:
    doc = f": {group.doc}" if group.doc else ""
    yield f"{group.key}{doc}"
    if choices := choices_of(group.key):
        default = f" (default {chosen})" if chosen is not None else ""
        yield f"  {group.key}=CHOICE of {', '.join(choices)}{default}, and on top of it:"


def _line(setting: Setting, files: str | None) -> str:
    kind = "settings" if setting.group is not None else setting.type_name
    default = f", default {setting.default}" if setting.default else ", required" if setting.group is None else ""
    key = f"{setting.key}, or without a key" if setting.key == files else setting.key
    doc = f"  {setting.doc}" if setting.doc else ""
    return f"  {key} ({kind}{default}){doc}"
