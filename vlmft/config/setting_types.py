"""Types of settings that say which values there are. OmegaConf strips `Annotated` and sees the plain type inside."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Optional, Union


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What a value must be, in words and as a test. NaN holds in none of a number's; null is never tested."""

    expected: str
    holds: Callable[[Any], bool]


def chosen_count(value: int | str | None) -> int | None:
    """A `CountOrAuto` that is `auto` no more."""
    assert not isinstance(value, str), value
    return value


def one_of(*choices: str) -> Constraint:
    return Constraint(f"{', '.join(choices[:-1])} or {choices[-1]}", choices.__contains__)


def _count_or_share(value: float) -> bool:
    return 0 < value < 1 or (math.isfinite(value) and value >= 1 and value == int(value))


Count = Annotated[int, Constraint("a whole number >= 1", lambda n: n >= 1)]
AUTO = "auto"
CountOrAuto = Annotated[
    Union[int, str],
    Constraint("auto or a whole number >= 1", lambda n: n == AUTO or (isinstance(n, int) and n >= 1)),
]
CountOrZero = Annotated[int, Constraint("a whole number >= 0", lambda n: n >= 0)]
CountOrUnlimited = Annotated[int, Constraint("-1 or a whole number >= 1", lambda n: n == -1 or n >= 1)]
CountOrAll = Annotated[int, Constraint("-1 or a whole number >= 0", lambda n: n >= -1)]
Port = Annotated[int, Constraint("a port from 0 to 65535", lambda n: 0 <= n <= 65535)]
Positive = Annotated[float, Constraint("a number > 0", lambda x: 0 < x < math.inf)]
NotNegative = Annotated[float, Constraint("a number >= 0", lambda x: 0 <= x < math.inf)]
BelowOne = Annotated[float, Constraint("a number in [0, 1)", lambda x: 0 <= x < 1)]
Share = Annotated[float, Constraint("a share from 0 to 1", lambda x: 0 <= x <= 1)]
ShareOrCount = Annotated[float, Constraint("a share below 1 or a count >= 1", _count_or_share)]
ShareOrCountOrZero = Annotated[
    float, Constraint("0, a share below 1 or a count >= 1", lambda x: x == 0 or _count_or_share(x))
]
FolderName = Annotated[
    str,
    Constraint(
        "a name for a folder, of letters, digits and . _ - +",
        lambda name: re.fullmatch(r"[\w+-][\w.+-]*", name) is not None,
    ),
]
"""It becomes one component of a path."""
VariableName = Annotated[
    str, Constraint("the name of an environment variable", lambda name: re.fullmatch(r"[A-Za-z_]\w*", name) is not None)
]
SplitName = Annotated[str, one_of("train", "val", "test")]


def constraints(annotation: Any) -> Iterator[Constraint]:
    """Those of a type, also inside `Optional`, and of the items of a list."""
    yield from (found for found in getattr(annotation, "__metadata__", ()) if isinstance(found, Constraint))
    for inner in typing.get_args(annotation):
        yield from constraints(inner)


def group_in(annotation: Any) -> type | None:
    """The dataclass that a type is, or that it is when it is not null."""
    if typing.get_origin(annotation) is dict:
        return None
    kinds = (kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type))
    return next(filter(dataclasses.is_dataclass, kinds), None)


def member_in(annotation: Any) -> type | None:
    """The dataclass of each value of a mapping, null or not; None where it is no such mapping."""
    mappings = (kind for kind in (annotation, *typing.get_args(annotation)) if typing.get_origin(kind) is dict)
    return next((group_in(typing.get_args(kind)[1]) for kind in mappings), None)


@functools.cache
def all_settings(schema_class: type) -> dict[str, Any]:
    """Dotted key -> type with its constraints, of every setting and group of settings."""
    found = {}
    for name, annotation in typing.get_type_hints(schema_class, include_extras=True).items():
        found[name] = annotation
        if (group := group_in(annotation)) is not None:
            found |= {f"{name}.{key}": kind for key, kind in all_settings(group).items()}
    return found


def value_at(config: object, key: str) -> Any:
    """The value of a dotted key; None where a group on the way is null or not part of this config."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def refused_values(config: Any) -> Iterator[str]:
    """A sentence for each value that the type of its setting does not take."""
    schema_class: type = type(config)
    for key, annotation in all_settings(schema_class).items():
        value = value_at(config, key)
        if member_in(annotation) is not None and value:
            yield from (f"{key}.{name}.{odd}" for name, member in value.items() for odd in refused_values(member))
            continue
        for constraint in constraints(annotation):
            if value == []:
                yield f"{key}: Expected at least one of {constraint.expected}, got none"
            for item in value if isinstance(value, list) else [value]:
                if item is not None and not constraint.holds(item):
                    yield f"{key}: Expected {constraint.expected}, got {item!r}"


def all_optional(group: type) -> type:
    """The dataclass `group` with null for every setting, in groups too: what a command changes, and nothing else."""
    fields: list[tuple[str, Any, Any]] = []
    for name, annotation in typing.get_type_hints(group, include_extras=True).items():
        if (inner := group_in(annotation)) is not None:
            inner = all_optional(inner)
            fields.append((name, inner, dataclasses.field(default_factory=inner)))
        elif member_in(annotation) is not None:  # OmegaConf takes no key below one that is null
            fields.append((name, annotation, dataclasses.field(default_factory=dict)))
        else:
            fields.append((name, Optional[annotation], None))
    return dataclasses.make_dataclass(f"{group.__name__}Changes", fields, namespace={"made_of": group})
