"""From settings to a dataset, and to few-shot examples from a file; without torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError, checked_options
from vlmft.config.schema import DataConfig
from vlmft.data.dataset import Dataset
from vlmft.data.images import image_from_file
from vlmft.data.sources.archives import as_folder
from vlmft.sample import Message, Prompt, Sample


def make_dataset(config: DataConfig) -> Dataset:
    """The dataset that the config names, its options checked against its signature.

    Raises:
        ConfigError: also for a value that the dataset refuses, and a path that it does not take.
    """
    dataset_class: type[Dataset] = checked_options(config)
    if config.streaming:
        from vlmft.data.datasets import columns, streamed  # most runs have no table

        if dataset_class is not columns.Columns:
            raise ConfigError(
                f"data.streaming: {dataset_class.__name__} has all rows at once; set false, or data=columns"
            )
    arguments = dict(config.options)
    takes = inspect.signature(dataset_class).parameters
    for name in ("path", "revision"):
        value = getattr(config, name)
        if value is not None and name not in takes:
            raise ConfigError(f"data.{name}: {dataset_class.__name__} is generated and takes none; leave it out")
        if name in takes:
            arguments[name] = as_folder(value) if name == "path" and value is not None else value
    try:
        return streamed.StreamedColumns(**arguments) if config.streaming else dataset_class(**arguments)
    except ValueError as error:
        raise ConfigError(f"data.options: {error}") from error


def read_shots(file: Path, k: int) -> list[Sample]:
    """The first k examples of a JSONL file: {"question", "answer", and "image" or "images" below the file's folder}.

    Raises:
        ConfigError: no such file, or a line that is not an example.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"evaluation.few_shot.file: {error}; name a JSONL file of examples") from error
    return [_shot(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()][:k]


def _shot(file: Path, number: int, line: str) -> Sample:
    try:
        record: Mapping[str, Any] = json.loads(line)
        names = record.get("images", [record["image"]] if "image" in record else [])
        images = [image_from_file(file.expanduser().parent, str(name)) for name in names]
        prompt = Prompt((Message("user", (*images, str(record["question"]))),))
        return Sample(f"{file.name}:{number}", prompt, str(record["answer"]), (str(record["answer"]),))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"evaluation.few_shot.file: line {number}: Expected question, answer and image, got {line[:60]!r} ({error})"
        ) from error
