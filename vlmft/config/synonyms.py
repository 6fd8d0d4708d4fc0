"""What other tools call a setting, and what to write here: synonyms.yaml, looked up once a setting was refused."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

SETTING = re.compile(r"(?<![\w./'-])([a-z]\w*(?:\.\w+)*)=")
"""`train.lr=` in a text."""
GROUPS = ("model", "data", "train", "trainer", "callbacks", "logger", "debug", "evaluation", "experiment")
ROWS, TIMES_ROWS = "{rows}", "*N"
"""In a text: all rows of a step; so many times the rows that another name gives."""


@functools.cache
def synonyms() -> Mapping[str, Mapping[str, str]]:
    """Name -> pattern of its value -> text."""
    text = Path(__file__).with_name("synonyms.yaml").read_text(encoding="utf-8")
    table = yaml.load(text, yaml.BaseLoader)  # every scalar as text, `true` and 4 too
    return {name: {"*": entry} if isinstance(entry, str) else entry for name, entry in table.items()}


def texts_of(key: str, value: str | None, legal: Collection[str]) -> Iterator[str]:
    """What the table says of `key=value`, or of `key` with any value; not what is to be written but is not `legal`."""
    name = key.rpartition(".")[2]
    patterns = synonyms().get(key) or (synonyms().get(name, {}) if not {key, name} & {*legal} else {})
    for pattern, text in patterns.items():
        to_write = SETTING.findall(text.partition(";")[0]) if SETTING.match(text) else ()
        known = all(re.sub(r"^(data\.options)\..*", r"\1", setting) in legal for setting in to_write)
        if known and (value is None or _fits(value, pattern)):
            yield text


def _fits(value: str, pattern: str) -> bool:
    if pattern == "<path>":
        return value.startswith(("/", ".", "~")) or (value != "" and Path(value).exists())
    return fnmatchcase(value.lower(), pattern.lower())


def instead(arguments: Sequence[str], legal: Collection[str], refusal: str) -> str | None:
    """One line for a command that was refused: what to write for the names and values of other tools in it.

    `arguments` are its `key=value`; a key that is `legal` counts where the `refusal` begins with it. None: there is
    nothing of other tools.
    """
    pairs = (argument.lstrip("+").partition("=") for argument in arguments)
    given = {key: value for key, equals, value in pairs if equals}
    found = {
        key: text
        for key, value in given.items()
        if key not in legal or (("." in key or key in GROUPS) and re.match(rf"{re.escape(key)}[:=]", refusal))
        for text in [*texts_of(key, value, legal)][:1]
    }
    if any(ROWS in text for text in found.values()):
        factors = [given[key] for key, text in found.items() if ROWS in text or TIMES_ROWS in text]
        rows = math.prod(int(n) for n in (*factors, given.get("trainer.devices", "1")) if n.isdigit())
        found = {key: text.replace(ROWS, str(rows)) for key, text in found.items() if TIMES_ROWS not in text}
    write, answers, remarks = dict[str, str](), list[str](), list[str]()
    for key, text in found.items():
        text = text.replace("{}", given[key])
        if SETTING.match(text):
            settings, _, remark = text.partition("; ")
            write[f"{key}={given[key]}" if key in legal else key] = settings
            remarks += [remark] if remark else []
        else:
            answers.append(f"{key}: {text}")
    if write:
        more = f" ({'; '.join(dict.fromkeys(remarks))})" if remarks else ""
        answers.insert(0, f"{', '.join(write)}: not known here; write {' '.join(dict.fromkeys(write.values()))}{more}")
    return " | ".join(answers) or None
