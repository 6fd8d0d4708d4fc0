"""report.json: the content of a report beside its pages, so that they can be made again with more in them."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from vlmft.config.check import ConfigError
from vlmft.config.files import write_whole
from vlmft.report.content import Report
from vlmft.report.markdown import write_markdown
from vlmft.report.page import write_report

REPORT_JSON, REPORT_HTML, REPORT_MARKDOWN = "report.json", "report.html", "report.md"


def write_report_files(report: Report, folder: Path) -> Path:
    """report.json, report.md and report.html, whose path it returns; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(encoded(report), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    write_whole(folder / REPORT_JSON, (text + "\n").encode("utf-8", "surrogatepass"))
    write_report(report, folder / REPORT_HTML)
    write_markdown(report, folder / REPORT_MARKDOWN)
    return folder / REPORT_HTML


def read_report(folder: Path) -> Report | None:
    """The report that lies in a folder; None where there is none.

    Raises:
        ConfigError: the file is none of ours, or of another version of this program.
    """
    path = folder / REPORT_JSON
    if not path.is_file():
        return None
    try:
        found: Report = decoded(Report, json.loads(path.read_bytes().decode("utf-8", "surrogatepass")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: Expected the content of a report, got another one ({error}); evaluate again"
        ) from error
    return found


def put_grading(folder: Path, grading: Mapping[str, Any]) -> bool:
    """Makes the report's files again with what raters have found; False where there is no report.

    Raises:
        ConfigError: report.json is none of ours.
    """
    report = read_report(folder)
    if report is None:
        return False
    write_report_files(dataclasses.replace(report, grading=grading), folder)
    return True


def encoded(value: Any) -> Any:
    """Values for JSON: dataclasses as objects, bytes in base64, what is not finite as null."""
    if is_dataclass(value):
        return {one.name: encoded(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): encoded(one) for key, one in value.items()}
    return [encoded(one) for one in value] if isinstance(value, list | tuple) else value


def decoded(kind: Any, value: Any) -> Any:
    """What `encoded` made of a value of this type; a float that is null was not finite."""
    arguments = get_args(kind)
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: decoded(kinds[name], one) for name, one in value.items()})  # type: ignore[operator]
    if get_origin(kind) is UnionType:
        return None if value is None else decoded(arguments[0], value)
    if kind is bytes:
        return base64.b64decode(value)
    if kind is float:
        return math.nan if value is None else float(value)
    if get_origin(kind) in (tuple, Sequence):
        return tuple(decoded(arguments[0], one) for one in value)
    return value
