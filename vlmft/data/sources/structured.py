"""Answers that are JSON: written in one way, so that training teaches one spelling, and held against a JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.sources.roles import shown
from vlmft.data.sources.text import WrittenFloat
from vlmft.metrics.json_match import refuse_constant, unfenced
from vlmft.metrics.json_schema import errors_of, schema_error
from vlmft.sample import BadRowError

MOST_NEW_TOKENS = 512
"""What generation may take for an answer of JSON unless data.max_new_tokens says otherwise."""


def check_format(answer_format: str | None, json_schema: str | None) -> tuple[str | None, str | None]:
    """The two options as they are; raises ValueError for a format that there is not."""
    if answer_format not in (None, "json"):
        raise ValueError(f"Expected answer_format=json or none, got {answer_format!r}")
    if json_schema is not None and answer_format is None:
        raise ValueError("Expected answer_format=json with json_schema, got none; set it")
    return answer_format, json_schema


class JsonAnswers:
    """How the answers of a source are written."""

    def __init__(self, schema: Mapping[str, Any] | None) -> None:
        self.schema = schema
        """The given one; None: keys come in the order in which sampled rows have them."""
        self.order: dict[tuple[str, ...], dict[str, int]] = {}
        """Keys on the way to an object -> its keys, each with its place."""
        if schema is not None:
            self._learn_schema((), schema)

    @classmethod
    def of(cls, schema_file: str | None) -> JsonAnswers:
        """Raises ConfigError where there is no JSON Schema in that file."""
        return cls(None if schema_file is None else read_schema(schema_file))

    def learn(self, values: Iterable[Any]) -> None:
        """Takes the order of keys from answers, as far as no schema gives it; what is no JSON is passed over."""
        for value in values:
            try:
                self._learn((), read_answer("answer", value))
            except BadRowError:
                continue

    def _learn(self, path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, Mapping):
            known = self.order.setdefault(path, {})
            for key, inner in value.items():
                known.setdefault(key, len(known))
                self._learn((*path, key), inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                self._learn(path, inner)

    def _learn_schema(self, path: tuple[str, ...], schema: Any, depth: int = 0) -> None:
        if not isinstance(schema, Mapping) or depth > 20:  # a record may hold itself
            return
        if isinstance(name := schema.get("$ref"), str) and name.startswith("#/"):
            target: Any = self.schema
            for part in name[2:].split("/"):
                target = target.get(part, {}) if isinstance(target, Mapping) else {}
            self._learn_schema(path, target, depth + 1)
        self._learn_schema(path, schema.get("items"), depth + 1)
        for several in ("anyOf", "oneOf", "allOf"):
            for one in schema.get(several, ()):
                self._learn_schema(path, one, depth + 1)
        if properties := schema.get("properties"):
            known = self.order.setdefault(path, {})
            for key, inner in properties.items():
                known.setdefault(key, len(known))
                self._learn_schema((*path, key), inner, depth + 1)

    def written(self, field: str, value: Any) -> str:
        """The answer as it is trained on: keys in order, no white space but in texts, numbers and nulls as they are.

        Raises:
            BadRowError: no JSON object or list, a key twice in one object, or one that the given schema refuses.
        """
        found = read_answer(field, value)
        text = self._text((), found)
        if self.schema is not None and (problem := errors_of(self.schema, json.loads(text))):
            raise BadRowError(
                f"Expected {field} to fit data.options.json_schema, got {problem}; mend the row or the schema"
            )
        return text

    def with_references(self, field: str, answer: Any, references: Any) -> tuple[str, ...]:
        """The answer, then all correct ones; raises BadRowError as `written`."""
        text = self.written(field, answer)
        several = references if isinstance(references, (list, tuple)) else [references]
        several = [one for one in several if one not in (None, "")]
        return (text, *([self.written("references", one) for one in several] or [text]))

    def _text(self, path: tuple[str, ...], value: Any) -> str:
        if isinstance(value, Mapping):
            places = self.order.get(path, {})
            keys = sorted(value, key=lambda key: places.get(key, len(places)))  # others stay in their own order
            inner = (f"{_scalar(str(key))}:{self._text((*path, key), value[key])}" for key in keys)
            return f"{{{','.join(inner)}}}"
        if isinstance(value, (list, tuple)):
            return f"[{','.join(self._text(path, one) for one in value)}]"
        return _scalar(value)

    def said(self) -> str:
        """For people."""
        whence = "of data.options.json_schema" if self.schema is not None else "in which rows have them first"
        keys = ", ".join(self.order.get((), ()))
        return f"JSON, keys in the order {whence}{f': {keys}' if keys else ''}"


def read_answer(field: str, value: Any) -> Any:
    """The object or list that an answer is, also as a text, in a Markdown fence or in Donut's {"gt_parse": ...}.

    Numbers of a text are `WrittenFloat` and int. Raises BadRowError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(
                unfenced(value), parse_float=WrittenFloat, parse_constant=refuse_constant, object_pairs_hook=_once
            )
        except (ValueError, RecursionError) as error:
            raise BadRowError(f"Expected JSON as {field}, got {shown(value)} ({error}); mend the row") from error
    if isinstance(value, Mapping) and "gt_parse" in value:
        value = value["gt_parse"]
    if not isinstance(value, (Mapping, list, tuple)) or not value:
        raise BadRowError(
            f"Expected a JSON object or list that is not empty as {field}, got {shown(value)}; mend the row"
        )
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!r} stands twice in an object")
    return found


def _scalar(value: Any) -> str:
    if isinstance(value, WrittenFloat):
        return value.text
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise BadRowError(f"Expected numbers that JSON has, got {value!r}; write null") from error


@cache
def read_schema(file: str) -> Mapping[str, Any]:
    """The JSON Schema in a file; raises ConfigError under data.options.json_schema where there is none."""
    place, key = Path(file).expanduser(), "data.options.json_schema"
    try:
        schema = json.loads(place.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: Expected a JSON file, got {file!r} ({error}); fix it") from error
    if problem := schema_error(schema):
        raise ConfigError(f"{key}: Expected a JSON Schema in {file}, got {problem}; fix it")
    found: Mapping[str, Any] = schema
    return found
