"""The settings of a command of `vlmft`: what there are, and how a command line gives them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from vlmft.config.check import Config, ConfigError, checked
from vlmft.config.entry import conf_dir
from vlmft.config.setting_types import constraints, group_in, member_in

TAKEN_BY_HYDRA = re.compile(r"[\w./:+@%*?|-]+|\[.*\]|\{.*\}", re.ASCII)
"""Values that need no quotes in Hydra's grammar."""


@dataclass(frozen=True)
class Setting:
    """One field of a schema, or of a group in it."""

    key: str
    """Dotted."""
    annotation: Any
    doc: str
    """One line; empty where the schema has none."""
    of_member: Any = None
    """Its default in a group that may be there under any name."""

    @property
    def group(self) -> type | None:
        """The dataclass whose settings are below this one."""
        return group_in(self.annotation)

    @property
    def is_text(self) -> bool:
        return str in (self.annotation, *typing.get_args(self.annotation))

    @property
    def type_name(self) -> str:
        """Such as "int", "a whole number >= 1 or null", or the values that there are."""
        return _type_name(self.annotation)


def settings_of(schema_class: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a schema in its order, those of a group after the group itself."""
    docs: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(schema_class.__mro__)):
        docs |= _docs(base)
    hints = typing.get_type_hints(schema_class, include_extras=True)
    for field in dataclasses.fields(schema_class):
        group = group_in(hints[field.name])
        of_group = inspect.getdoc(getattr(group, "made_of", group)) if group is not None else None
        doc = docs.get(field.name) or " ".join((of_group or "").partition("\n\n")[0].split())
        yield Setting(prefix + field.name, hints[field.name], doc)
        if group is not None:
            yield from settings_of(group, f"{prefix}{field.name}.")
        elif (member := member_in(hints[field.name])) is not None:
            default, inner = member(), f"{prefix}{field.name}.NAME."
            for setting in settings_of(member, inner):
                yield dataclasses.replace(setting, of_member=getattr(default, setting.key.removeprefix(inner)))


def _docs(schema_class: type) -> dict[str, str]:
    """Field -> the string below it, which Python itself drops."""
    schema_class = getattr(schema_class, "made_of", schema_class)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(schema_class))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return docs


def written(value: Any) -> str:
    """A value as on a command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _type_name(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return next((one.expected for one in constraints(annotation)), _type_name(arguments[0]))
    if type(None) in arguments:
        return " or ".join([*(_type_name(one) for one in arguments if one is not type(None)), "null"])
    if typing.get_origin(annotation) is list:
        return f"list of {_type_name(arguments[0])}"
    if typing.get_origin(annotation) is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(annotation.__members__)
    return str(getattr(annotation, "__name__", annotation))


@dataclass(frozen=True)
class Given:
    """A command line, taken apart."""

    values: list[tuple[str, str]]
    """Key and value as they were typed, in their order; a key may be there twice."""
    overrides: list[str]
    """The same in Hydra's grammar."""
    files: list[str]
    """Arguments without a key."""


def given(
    arguments: Sequence[str], schema_class: type, *, takes_files: bool = False, hydra_options: bool = False
) -> Given:
    """`key=value`, `--key value`, `--key=value` and `--switch` as the settings that they stand for.

    With `hydra_options`, those of Hydra stay as they are, such as `--cfg job` or `-m`.

    Raises:
        ConfigError: a key without its value, or an argument that is neither a setting nor a file.
    """
    known = {setting.key: setting for setting in settings_of(schema_class)}
    parsed, rest = Given([], [], []), list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.partition("=")
        if argument.startswith("--"):
            key = key.removeprefix("--").replace("-", "_")
            if hydra_options and f"--{key.replace('_', '-')}" in get_args_parser()._option_string_actions:
                parsed.overrides.append(argument)
                continue
            if not equals:
                value = _value_after(key, known.get(key), rest)
            is_text = key in known and known[key].is_text
            parsed.overrides.append(f"{key}={_quoted(value) if is_text else value}")
        elif takes_files and (not equals or Path(argument).exists() or (key not in known and "/" in key)):
            parsed.files.append(argument)
            continue
        elif not equals and not argument.startswith("~") and not hydra_options:
            raise ConfigError(f"{argument}: Expected key=value, or --key value; --help lists the settings")
        else:
            parsed.overrides.append(argument)
        parsed.values.append((key, value))
    return parsed


def _value_after(key: str, setting: Setting | None, rest: list[str]) -> str:
    """The value of `--key`, taken from the arguments behind it."""
    if setting is not None and setting.annotation is bool:
        return rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
    if rest and (not rest[0].startswith("-") or re.fullmatch(r"-[\d.].*", rest[0])):
        return rest.pop(0)
    if setting is None:
        return "true"  # the key is what is wrong, and is named as every unknown one
    raise ConfigError(f"{key}: Expected a value after --{key}, got none")


def _quoted(value: str) -> str:
    if TAKEN_BY_HYDRA.fullmatch(value):
        return value
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)) + "'"


def config_of_files(schema_class: type[Config], files: str, arguments: Sequence[str]) -> Config:
    """The settings of a command without groups that takes files, its setting `files`. Values are taken as they are
    typed, commas and spaces too, and the setting of a list may be given several times.

    Raises:
        ConfigError: as `given` and `checked`.
    """
    line: Given = given(arguments, schema_class, takes_files=True)
    lists = {setting.key for setting in settings_of(schema_class) if setting.type_name.startswith("list")}
    values: dict[str, Any] = {}
    for key, value in [*((files, name) for name in line.files), *line.values]:
        if key in lists:
            values.setdefault(key, []).append(value)
        elif key == files and key in values:
            raise ConfigError(f"{key}: Expected one, got {values[key]!r} and {value!r}")
        else:
            values[key] = None if value == "null" else value
    return checked(values, schema_class)


def choices_of(group: str) -> list[str]:
    """The files of conf/<group>, without their ending; none where there is no such folder."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
