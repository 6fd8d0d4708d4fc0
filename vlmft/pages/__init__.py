"""HTML pages from the templates of this folder: one head, one style sheet and one content policy for all of them.

jinja2 escapes: what a template is given is text, and only what the template itself writes is markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def packaged(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files("vlmft.pages").joinpath(name).read_text("utf-8")


@lru_cache(maxsize=1)
def environment() -> Environment:
    found = Environment(
        loader=FunctionLoader(packaged),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, default=str)
    return found


def whole_page(
    template: str,
    title: str,
    values: Mapping[str, Any],
    *,
    styles: Sequence[str] = ("page.css",),
    script: str = "",
    served: bool = False,
) -> str:
    """A whole page. Its policy admits these styles and this script alone; it loads nothing, or, where it is `served`,
    pictures and answers of its own server."""
    style = "".join(map(packaged, styles))
    sources = ["default-src 'none'", f"style-src {_hash(style)}"]
    sources += ["img-src 'self' data:", "connect-src 'self'"] if served else ["img-src data:"]
    if script:
        sources.append(f"script-src {_hash(script)}")
    policy = "; ".join([*sources, "base-uri 'none'", "form-action 'none'"])
    parts = {"title": title, "style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment().get_template(template).render({**values, **parts})


def script_json(value: object) -> Markup:
    """JSON that can stand inside a <script> element, whatever its strings hold.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
