"""Examples of few-shot prompts that were written by hand: a JSONL file beside their images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError
from vlmft.data.images import image_from_file
from vlmft.sample import Message, Prompt, Sample


def read_shots(file: Path, k: int) -> list[Sample]:
    """The first k examples of a JSONL file: {"question", "answer", and "image" or "images" below the file's folder}.

    Raises:
        ConfigError: no such file, or a line that is no example.
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
