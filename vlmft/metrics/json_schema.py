"""JSON Schema of answers, by the `jsonschema` library: taken from training answers, and held against others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from vlmft.metrics.json_match import unfenced

Schema = Mapping[str, Any]


def schema_of(answers: Sequence[str]) -> dict[str, Any] | None:
    """A schema that all the answers fit: keys that all objects at a place have are required, others of some objects may
    come, no others; types as they are. None where an answer is no JSON object or list."""
    try:
        values = [json.loads(answer) for answer in answers]
    except ValueError:
        return None
    return _schema(values) if values and all(isinstance(value, (dict, list)) for value in values) else None


def _schema(values: Sequence[Any]) -> dict[str, Any]:
    types = sorted({_type(value) for value in values})
    types = [name for name in types if name != "integer" or "number" not in types]
    found: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    if objects := [value for value in values if isinstance(value, dict)]:
        keys = list(dict.fromkeys(key for value in objects for key in value))
        found["properties"] = {key: _schema([value[key] for value in objects if key in value]) for key in keys}
        found["required"] = [key for key in keys if all(key in value for value in objects)]
        found["additionalProperties"] = False
    if items := [one for value in values if isinstance(value, list) for one in value]:
        found["items"] = _schema(items)
    return found


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = ((dict, "object"), (list, "array"), (str, "string"), (int, "integer"), (float, "number"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def schema_error(schema: Any) -> str | None:
    """Why this is no schema that can be used; None where it is one."""
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
    from jsonschema.validators import validator_for  # type: ignore[import-untyped]

    if not isinstance(schema, dict):
        return f"a {type(schema).__name__}"
    if outside := next((name for name in _references(schema) if not name.startswith("#")), None):
        return f'"$ref": {outside!r}, which is not in the file'  # it would be fetched from the network
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return None


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one)


def errors_of(schema: Schema, value: Any) -> str:
    """The first thing that does not fit, with its place; "" where all fits."""
    errors = sorted(_validator(json.dumps(schema)).iter_errors(value), key=lambda error: str(error.json_path))
    return f"{errors[0].message} at {errors[0].json_path}" if errors else ""


def fits(schema: Schema, answer: str) -> bool:
    """Whether an answer, a Markdown fence aside, is JSON that the schema takes."""
    try:
        value = json.loads(unfenced(answer))
        return not errors_of(schema, value)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=16)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for  # takes a tenth of a second to import

    value = json.loads(schema)
    return validator_for(value)(value)
