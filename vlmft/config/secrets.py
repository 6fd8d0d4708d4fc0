"""Secrets come from the environment or a git-ignored `.env`; what looks like one is kept out of all that is written."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REDACTED = "<redacted>"
SECRET_NAME = re.compile(r"(token|secret|password|passwd|credentials?|api_?key)$|(^|[._-])key$", re.IGNORECASE)
"""The end of a key's or a variable's name: `hf_token` and `WANDB_API_KEY`, but not `max_new_tokens`."""
SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|wandb_v1_\w{20,}|gh[a-z]_[A-Za-z0-9]{20,})")
"""Tokens of the Hugging Face Hub, OpenAI and its like, Weights & Biases, GitHub."""
WANDB_KEY = re.compile(r"(?<![\w/\\.-])[0-9a-f]{40}(?![\w/\\.-])", re.IGNORECASE)
"""A W&B key of the older kind looks like a Git commit; hence not inside a path, and not under the names below."""
COMMIT_NAME = re.compile(r"(revision|commit)$")
SHORTEST = 8
"""Values of secret-looking variables are looked for everywhere, unless they are so short that they are in any text."""


def redacted_text(text: str) -> str:
    """`text` without tokens of known looks, and without the values of secret-looking environment variables."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, REDACTED)
    return SECRET_VALUE.sub(REDACTED, text)


def redacted(value: Any, key: str = "") -> Any:
    """Plain settings as they may be stored: secrets under `key` and below it replaced."""
    if value is not None and not isinstance(value, bool) and SECRET_NAME.search(key):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return redacted_text(value if COMMIT_NAME.search(key) else WANDB_KEY.sub(REDACTED, value))


def redacted_override(argument: str) -> str:
    """`key=value` as it may be stored."""
    key, equals, value = argument.partition("=")
    return f"{key}={redacted(value, key)}" if equals else str(redacted(argument))


def read_dotenv(path: Path) -> None:
    """Puts the secrets of a `.env` file, lines of NAME=value, into the environment; what is there already stays.

    Secrets alone: a `.env` that comes with somebody's data must not be able to set, say, WANDB_BASE_URL.
    """
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        found = re.fullmatch(r"\s*(?:export\s+)?(\w+)\s*=\s*(['\"]?)(.*?)\2\s*", line)
        if found is None:
            continue
        if SECRET_NAME.search(found[1]):
            os.environ.setdefault(found[1], found[3])
        else:
            print(f"{path}: {found[1]} names no secret and is left out; set it in the environment", file=sys.stderr)
