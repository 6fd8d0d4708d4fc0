"""README.md of an exported model: what it was trained on, how, and what that was worth."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from vlmft.config.schema import TrainConfig
from vlmft.config.secrets import redacted
from vlmft.config.tool_schema import ExportConfig, ExportForm
from vlmft.evaluation.compare import rows_sentence
from vlmft.evaluation.numbers import SHARE, console, percent
from vlmft.models.locate import locate
from vlmft.run.folder import plain
from vlmft.tools.serving import Serving

UNKNOWN = "unknown"


def card(run: TrainConfig, summary_path: Path, config: ExportConfig, check: str | None, served: Serving) -> str:
    """Front matter as the Hub reads it, the table of arms, data, settings, licence of the base."""
    base, licence = run.model.path, licence_of(run)
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else {}
    front: dict[str, Any] = {"tags": ["vlmft"], "pipeline_tag": "image-text-to-text"}
    front |= {"base_model": base} if locate(run.model) == base and not Path(base).exists() else {}  # the Hub checks it
    front |= {"library_name": "peft" if config.form == ExportForm.adapter else "transformers"}
    front |= {} if licence == UNKNOWN else {"license": licence}
    settings = redacted({key: plain(run)[key] for key in ("model", "data", "train", "seed")})
    merged = f"its weights with the adapter added in, {config.dtype.name}"
    what = "an adapter for it" if config.form == ExportForm.adapter else merged
    licence_text = "as the base's own model card says" if licence == UNKNOWN else licence
    parts = [
        f"---\n{yaml.safe_dump(front)}---\n# {run.model.name} tuned on {run.data.name}",
        f"Base model: {base}{f' at {run.model.revision}' if run.model.revision else ''}; here: {what}.",
        *([f"Beside the model as it was trained: {check}."] if check is not None else []),
        "## Before and after",
        *results(summary),
        *(["## Boxes and points", f"Written as {words}."] if (words := summary.get("coordinates")) else []),
        "## Serving",
        *serving_text(served),
        "## Data",
        f"{run.data.name} ({run.data.dataset}), rows: {json.dumps(summary.get('rows', {}))}.",
        "## Settings",
        f"```yaml\n{yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)}```",
        "## Licence",
        f"Of the base model: {licence_text}. The data have their own.",
    ]
    return "\n\n".join(parts) + "\n"


def results(summary: dict[str, Any]) -> list[str]:
    """The run's sentence and its table of arms."""
    arms = summary.get("arms") or []
    if not arms:
        return ["Not evaluated."]
    lines = [f"| arm | n | {summary['metric']} | 95 % interval |", "|---|---|---|---|"]
    for arm in arms:
        n = rows_sentence(arm["n"], arm.get("n_groups") or arm["n"], arm.get("kind", "groups")).removesuffix(" rows")
        lines.append(f"| {arm['arm']} | {n} | {percent(arm['value'])} | {console(SHARE.bounds(arm['interval']))} |")
    notes = [f"- {note}" for note in summary.get("notes", [])]
    return [str(summary["sentence"]), "\n".join(lines), *(["\n".join(notes)] if notes else [])]


def serving_text(served: Serving) -> list[str]:
    """Commands, how a server is compared with the run, and what to know of its answers."""
    if not served.commands:
        return [f"{served.warning[:1].upper()}{served.warning[1:]}."]
    commands = "\n".join((*served.commands, served.comparison("RUN_FOLDER")))
    notes = ["\n".join(f"- {note}" for note in served.notes)] if served.notes else []
    return [f"```bash\n{commands}\n```", *notes]


def licence_of(run: TrainConfig) -> str:
    """What the base's own model card says; `unknown` where it cannot be read."""
    path = Path(locate(run.model)) / "README.md"
    if not path.is_file():
        try:
            path = Path(hf_hub_download(run.model.path, "README.md", revision=run.model.revision))
        except (OSError, HfHubHTTPError, HFValidationError, ValueError):
            return UNKNOWN
    front = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8"), re.DOTALL)
    metadata = yaml.safe_load(front[1]) if front else None
    return str(metadata["license"]) if isinstance(metadata, dict) and "license" in metadata else UNKNOWN
