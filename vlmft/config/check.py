"""From a composed config to checked dataclasses: unknown keys, types, contradictions, classes. No torch.

Hydra rejects a plain `model.lora.rr=3` by itself, but lets `+model.lora.rr=3` and `++model.lora.rr=3` through, and
`OmegaConf.to_object` makes attributes of them that nobody reads. So the composed values meet a fresh schema here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vlmft.config import schema
from vlmft.config.contradictions import NAMED_BY_USER, contradictions, foreign_target
from vlmft.config.setting_types import all_settings, group_in, member_in
from vlmft.config.synonyms import SETTING, texts_of

Config = TypeVar("Config")
schema_node = functools.cache(OmegaConf.structured)
"""A schema with its defaults in OmegaConf's form, made once: what is merged onto it is merged onto a copy."""

REWORDED: tuple[tuple[str, str], ...] = (
    (r"Value '(.*)' of type '\w+' could not be converted to Integer", r"Expected a whole number, got '\1'"),
    (r"Value '(.*)' of type '\w+' could not be converted to Float", r"Expected a number, got '\1'"),
    (r"Value '(.*)' is not a valid bool .*", r"Expected true or false, got '\1'"),
    (r"Invalid value '(.*)', expected one of \[(.*)\]", r"Expected one of \2, got '\1'"),
    (r".*[Mm]issing mandatory value.*", "Expected a value, got none; set it"),
    (r"field '.*' is not Optional", "Expected a value, got null; leave it out for its default"),
    (r"Invalid type assigned: .* value: (.*)", r"Expected settings below it, as in a.b=c, got \1"),
    (r"Invalid value assigned: (\w+) is not a ListConfig.*", r"Expected a list such as [a,b], got a \1"),
    (r"Cannot assign (\w+) to Dict.*", r"Expected a mapping such as {a: 1}, got a \1"),
    (r"KeyError raised while resolving interpolation: \"?(.*?)\"?", r"\1"),
)
"""OmegaConf's sentences -> ours."""


class ConfigError(Exception):
    """A user's mistake in the settings: shown as one line, exit code 2."""


def checked(cfg: DictConfig | Mapping[str, Any], schema_class: type[Config], *, stored: bool = False) -> Config:
    """The composed `cfg` as dataclasses; `stored`: as somebody may have written it into a run folder.

    Raises:
        ConfigError: a key that the schema does not have, a value of the wrong type, settings that contradict, or
            options that the dataset does not have, the environment's secrets to be written down, or in a stored config
            a class from elsewhere.
    """
    try:
        _raise_if(
            f"{key}: Expected a value, got {text!r}, which would be stored resolved; let the shell fill it in"
            for key, text in texts(OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else dict(cfg))
            if "oc.env" in text
        )
        values = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
        if not stored:
            NAMED_BY_USER.update(text for _, text in texts(values))
        _raise_if(unknown_keys(typing.cast(dict[str, Any], values), schema_class))
        merged = OmegaConf.merge(schema_node(schema_class), values)  # type: ignore[arg-type]  # classes are hashable
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    _raise_if(contradictions(config))
    data: schema.DataConfig | None = getattr(config, "data", None)
    if data is not None:
        checked_options(data)
    return config


def texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of each text at any depth."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from texts(value, key)
    elif isinstance(values, str):
        yield key, values


def _raise_if(problems: Iterator[str]) -> None:
    if text := " | ".join(problems):
        raise ConfigError(text)


def one_line(error: OmegaConfBaseException) -> str:
    """OmegaConf's message in our words, on one line, led by the full key."""
    key = error.full_key
    if key and isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        root = error.parent_node._get_root() if error.parent_node is not None else None
        return no_such_setting(key, OmegaConf.get_type(root) if root is not None else None)
    lines = (line.strip() for line in str(error).splitlines())
    text = " ".join(line for line in lines if line and not re.match(r"full_key:|\w+_type=", line))
    for pattern, ours in REWORDED:
        text = re.sub(f"^{pattern}$", ours, text)
    return f"{key}: {text}" if key else text


def unknown_keys(values: Mapping[str, Any], schema_class: type, prefix: str = "") -> Iterator[str]:
    """A sentence for each key, at any depth, that `schema_class` has no field for."""
    settings = all_settings(schema_class)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in settings:
            yield no_such_setting(key, schema_class)
        elif group_in(settings[key]) is not None and isinstance(value, Mapping):
            yield from unknown_keys(value, schema_class, f"{key}.")
        elif (member := member_in(settings[key])) is not None and isinstance(value, Mapping):
            groups = {one: its for one, its in value.items() if isinstance(its, Mapping)}
            yield from (f"{key}.{one}.{odd}" for one, its in groups.items() for odd in unknown_keys(its, member))


def no_such_setting(key: str, schema_class: type | None) -> str:
    """The sentence for an unknown dotted key, with the nearest legal one where `schema_class` is known."""
    if schema_class is None or not dataclasses.is_dataclass(schema_class):
        return f"{key}: no such setting"
    for group, annotation in all_settings(schema_class).items():
        if (member := member_in(annotation)) is not None and key.startswith(f"{group}."):
            name, _, inner = key.removeprefix(f"{group}.").partition(".")
            return f"{group}.{name}.{no_such_setting(inner, member)}"
    return f"{key}: no such setting; {nearest_key(key, [k for k in all_settings(schema_class) if k != key])}"


def nearest_key(key: str, legal: Sequence[str]) -> str:
    """ "did you mean 'train.lr'?" for `lr`: the last name counts most, then the path; else what its group holds."""

    def likeness(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    if key.startswith("hydra."):
        return "a + before it adds it to Hydra's own"
    name = key.rpartition(".")[2]
    for text in texts_of(key, None, legal):
        setting = SETTING.match(text)
        return f"did you mean {setting[1]!r}?" if setting else text
    best = max(legal, key=lambda other: likeness(name, other.rpartition(".")[2]) + likeness(key, other) / 2)
    group, (best_group, _, best_name) = key.rpartition(".")[0], best.rpartition(".")
    moved = best_group != group and group in legal  # from a group that exists: then only for a clear likeness
    if likeness(name, best_name) >= (0.8 if moved else 0.6):
        return f"did you mean {best!r}?"
    siblings = [other.rpartition(".")[2] for other in legal if other.rpartition(".")[0] == group]
    return f"expected one of {', '.join(siblings or [other for other in legal if '.' not in other])}"


def nearest(name: str, legal: Sequence[str]) -> str:
    """ "did you mean 'x'?", or the legal names, for the end of an error line."""
    close = difflib.get_close_matches(name, legal, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(legal)) or 'none'}"


def imported(target: str) -> Any:
    """What `target` ("module.path:name") names, whatever it is: of our own tables, or checked before."""
    module_name, _, name = target.partition(":")
    return getattr(importlib.import_module(module_name), name)


def import_allowed(key: str, target: str) -> Any:
    """The class that `target` ("module.path:ClassName") names: of an allowed package, or named by the user.

    Raises:
        ConfigError: another form, another package, or no such class; `key` is the setting that named it.
    """
    _raise_if(foreign_target(key, target))
    try:
        found = imported(target)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {target!r} cannot be imported ({error}); check its spelling") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{key}: Expected a class, got {target!r}, a {type(found).__name__}")
    if target not in NAMED_BY_USER:  # an allowed module may have imported a class from anywhere, as pathlib's Path
        _raise_if(foreign_target(key, f"{found.__module__}:{found.__name__}"))
    return found


def checked_options(data: schema.DataConfig) -> type:
    """The dataset class, after its signature has accepted `data.options`.

    Raises:
        ConfigError: no dataset class, an option that its constructor does not name, or a value of another type than
            its annotation.
    """
    dataset_class = import_allowed("data.dataset", data.dataset)
    if inspect.isabstract(dataset_class) or not hasattr(dataset_class, "to_sample"):
        raise ConfigError(f"data.dataset: Expected a class with index, read and to_sample, got {data.dataset!r}")
    parameters = inspect.signature(dataset_class).parameters.values()
    hints = typing.get_type_hints(dataset_class.__init__)
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    legal = [name for name in named if name not in ("path", "revision")]
    for key, value in data.options.items():
        if key not in legal:
            raise ConfigError(f"data.options.{key}: {dataset_class.__name__} has no such option; {nearest(key, legal)}")
        if key in hints and not _fits(value, hints[key]):
            raise ConfigError(f"data.options.{key}: Expected {_spelled(hints[key])}, got {value!r}")
    return typing.cast(type, dataset_class)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin is typing.Literal:
        return any(value == legal and type(value) is type(legal) for legal in arguments)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if arguments:  # a union
        return any(value is None if a is type(None) else _fits(value, a) for a in arguments)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, annotation) and not (annotation is int and isinstance(value, bool))


def _spelled(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
