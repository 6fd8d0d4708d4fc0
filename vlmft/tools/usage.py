"""What `vlmft COMMAND --help` prints: every setting with its type, its default and a line from the schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from vlmft.tools.settings import Setting, choices_of, chosen_by_default, settings_of


def help_of(
    command: str,
    summary: str,
    schema_class: type,
    examples: Sequence[str],
    *,
    files: str | None = None,
    width: int | None = None,
) -> str:
    """The text; `files` is the setting that arguments without a key are, `width` where lines are folded, in
    characters."""
    settings = [*settings_of(schema_class)]
    chosen = chosen_by_default(command)
    lines = [f"vlmft {command}: {summary}", "", *(f"  vlmft {command} {example}" for example in examples), ""]
    lines.append("Settings, as key=value or --key value:")
    own = [setting for setting in settings if "." not in setting.key and setting.group is None]
    lines += [_line(setting, files) for setting in sorted(own, key=lambda setting: setting.key != files)]
    for setting in settings:
        if "." not in setting.key and setting.group is not None:
            below = [one for one in settings if one.key.startswith(f"{setting.key}.")]
            lines += ["", *_head(setting, chosen.get(setting.key)), *(_line(one, files) for one in below)]
    if width is not None:
        lines = [textwrap.fill(line, width, subsequent_indent=" " * 6, break_on_hyphens=False) for line in lines]
    return "\n".join(lines) + "\n"


def _head(group: Setting, chosen: str | None) -> Iterator[str]:
    doc = f": {group.doc}" if group.doc else ""
    yield f"{group.key}{doc}"
    if choices := choices_of(group.key):
        default = f" (default {chosen})" if chosen is not None else ""
        yield f"  {group.key}=CHOICE of {', '.join(choices)}{default}, and on top of it:"


def _line(setting: Setting, files: str | None) -> str:
    kind = "settings" if setting.group is not None else setting.type_name
    default = f", default {setting.default}" if setting.default else ", required" if setting.group is None else ""
    key = f"{setting.key}, or without a key" if setting.key == files else setting.key
    doc = f"  {setting.doc}" if setting.doc else ""
    return f"  {key} ({kind}{default}){doc}"
