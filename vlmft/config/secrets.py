"""Secrets come from the environment or a git-ignored `.env`; what looks like one is kept out of all that is written."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmft.config.check import ConfigError

REDACTED = "<redacted>"
SECRET_NAME = re.compile(
    r"(token|secret|password|passwd|credentials?|"
    r"(api|access|secret|private|auth|account|ssh|hf|wandb|openai)[_-]?key)$",
    re.IGNORECASE,
)
"""The end of a setting's name: `hf_token` and `api_key`, but not `max_new_tokens`, nor `image_key`, a column."""
SPECIAL_TOKEN = re.compile(
    r"(^|[._-])(bos|eos|sep|cls|pad|unk|mask|start|end|stop|image|img|video|vision|audio|prompt|question|answer)"
    r"[_-]?token$",
    re.IGNORECASE,
)
"""What a tokenizer or a template calls a token is no secret."""
SECRET_VARIABLE = re.compile(rf"{SECRET_NAME.pattern}|(^|_)key$", re.IGNORECASE)
"""The end of an environment variable's name; there, any KEY is one."""
SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|wandb_v1_\w{20,}|gh[a-z]_[A-Za-z0-9]{20,})")
"""Tokens of the Hugging Face Hub, OpenAI and its like, Weights & Biases, GitHub."""
WANDB_KEY = re.compile(r"(?<![\w/\\.-])[0-9a-f]{40}(?![\w/\\.-])", re.IGNORECASE)
"""A W&B key of the older kind looks like a Git commit; hence not inside a path, and not under the names below."""
URL_LOGIN = re.compile(r"(?<=://)[^/?#\s:@\"'<>]*:[^/?#\s\"'<>]+(?=@)")
"""`user:password` before a URL's host."""
COMMIT_NAME = re.compile(r"(revision|commit)$")
SHORTEST = 8
"""Values of secret-looking variables are looked for everywhere, unless they are so short that they are in any text."""


def redacted_text(text: str) -> str:
    """`text` without tokens of known looks, and without the values of secret-looking environment variables."""
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, REDACTED)
    return URL_LOGIN.sub(REDACTED, SECRET_VALUE.sub(REDACTED, text))


def names_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret."""
    return bool(SECRET_NAME.search(key)) and not SPECIAL_TOKEN.search(key)


def redacted(value: Any, key: str = "") -> Any:
    """Plain settings as they may be stored: secrets under `key` and below it replaced."""
    if value is not None and not isinstance(value, bool) and names_secret(key):
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

    Raises:
        ConfigError: the file cannot be read, or is no UTF-8.
    """
    for line in _text(path).splitlines():
        found = re.fullmatch(r"\s*(?:export\s+)?(\w+)\s*=\s*(['\"]?)(.*?)\2\s*(?:(?<=\s)#.*)?", line)
        if found is None:
            continue
        if SECRET_VARIABLE.search(found[1]):
            os.environ.setdefault(found[1], found[3])
        else:
            print(f"{path}: {found[1]} names no secret and is left out; set it in the environment", file=sys.stderr)


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make it readable, or move it away") from error
    if "\0" in text:  # UTF-16 without its mark is UTF-8 of a kind
        raise ConfigError(f"{path}: Expected UTF-8 text, got another encoding; save it as UTF-8")
    return text
