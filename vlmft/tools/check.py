"""vlmft check: what your files are read as, before anything is trained. Seconds; without model= not even torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vlmft.config.entry import EXIT_FAILURE
from vlmft.config.schema import ModelConfig, OnBadRow
from vlmft.config.tool_schema import CheckConfig
from vlmft.data.dataset import source_lines
from vlmft.data.ledger import NAMED_ROWS, Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.survey.card import suspicions
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.evaluation.readable_answers import MOST_ROWS, readable
from vlmft.evaluation.without_looking import alarms_of
from vlmft.sample import SPLITS, BadRowError, Image, Sample

DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\d.,]*\b")
"""What differs between two rows that are refused for one reason."""
LONGEST_TEXT = 300


def check(config: CheckConfig) -> None:
    """Prints what the source was read as, its splits, one row of each, and which rows cannot be used and why.

    Exits with 1 where rows cannot be used and data.on_bad_row does not leave them out.

    Raises:
        ConfigError: the source cannot be read, or not divided; what is known of it by then is printed before.
    """
    dataset = make_dataset(config.data)
    source = dataset.describe()
    if not config.json:
        for line in source_lines(source):
            print(line)
    rows = Rows(dataset, config.data, Ledger(None, OnBadRow.skip, 1.0), config.seed)
    survey = survey_splits(rows)
    shown = {split: _first(rows, split) for split in SPLITS if rows.ids[split]}
    model = _under_model(survey, config.model, dict(shown.items())) if config.model is not None else {}
    readable_answers = {
        split: readable([sample for sample, _ in survey.some(split, MOST_ROWS)]).to_dict() for split in survey.cards
    }
    content = {
        "source": vars(source),
        "rows": {split: len(rows.ids[split]) for split in SPLITS},
        "divided": list(rows.divided),
        "groups": {split: {"n": n, "largest": largest} for split, (n, largest) in survey.groups.items()},
        "bad": _by_reason(rows.ledger.bad),
        "warnings": [*suspicions(survey.cards), *alarms_of(readable_answers)],
        "shown": {split: _turns(sample) for split, sample in shown.items() if sample is not None},
        "model": model,
    }
    print(json.dumps(content, indent=2, ensure_ascii=False, default=str) if config.json else _as_text(content))
    if rows.ledger.bad and config.data.on_bad_row != OnBadRow.skip:
        sys.exit(EXIT_FAILURE)


def _first(rows: Rows, split: str) -> Sample | None:
    """The first row of a split that can be used."""
    for row_id in rows.ids[split]:  # type: ignore[index]
        if row_id not in rows.ledger.bad:
            return rows.sample(row_id)
    return None


def _under_model(survey: Survey, config: ModelConfig, shown: Mapping[str, Sample | None]) -> dict[str, Any]:
    """What the model takes of the rows: those that it refuses go to the ledger. Loads no weights."""
    from vlmft.models.family import make_family
    from vlmft.models.load import load_source
    from vlmft.run.quiet import quiet_libraries
    from vlmft.run.usable import refuse_unusable

    quiet_libraries()
    source, hf_config = load_source(config)
    family = make_family(config, source, hf_config)
    family.allow(survey.rows.dataset.allow_tokens)
    refuse_unusable(survey, family, lru_cache(maxsize=None)(family.image_tokens), lambda: None)
    texts = {}
    for split, sample in shown.items():
        if sample is not None and sample.id not in survey.rows.ledger.bad:
            row = family.encode(sample)
            texts[split] = {"tokens": row.length, "text": _folded(family.show(row.input_ids.tolist()))}
    return {"name": config.name, "limit_tokens": family.max_length_tokens, "rows": texts}


def _folded(text: str) -> str:
    """A token that is repeated, as images' are, once with its count."""
    return re.sub(r"((<[^<>]+>|\[[A-Z_]+\])\2{3,})", lambda m: f"{m[2]}x{len(m[1]) // len(m[2])}", text)


def _by_reason(bad: Mapping[str, str]) -> list[dict[str, Any]]:
    kinds: dict[str, list[str]] = {}
    for row_id, reason in bad.items():
        kinds.setdefault(DETAIL.sub("…", reason), []).append(row_id)
    return [{"rows": len(ids), "reason": bad[ids[0]], "ids": ids[:NAMED_ROWS]} for ids in kinds.values()]


def _turns(sample: Sample) -> dict[str, Any]:
    turns = [[message.role, *map(_piece, message.content)] for message in sample.prompt.messages]
    return {"id": sample.id, "prompt": turns, "answer": sample.answer, "references": list(sample.references)}


def _piece(piece: str | Image) -> str:
    if isinstance(piece, str):
        return repr(piece if len(piece) <= LONGEST_TEXT else f"{piece[:LONGEST_TEXT]}…")
    try:
        height, width, _ = piece.pixels.shape
    except BadRowError as error:
        return f"[image {piece.name}: {error}]"
    return f"[image {piece.name}, {width}x{height}]"


def _as_text(content: Mapping[str, Any]) -> str:
    lines = ["rows: " + ", ".join(f"{split} {n:,}" for split, n in content["rows"].items())]
    if content["divided"]:
        lines.append(f"  the source declares no {' and no '.join(content['divided'])}: taken from train by content")
    for split, groups in content["groups"].items():
        n_rows = content["rows"][split]
        if groups["n"] < n_rows:
            lines.append(f"  {split}: {n_rows:,} rows in {groups['n']:,} groups: rows of one image stay together")
    lines += [f"warning: {warning}" for warning in content["warnings"]]
    for split, shown in content["shown"].items():
        lines.append(f"a row of {split} ({shown['id']}: its place in the files)")
        lines += [f"  {role}: {' '.join(pieces)}" for role, *pieces in shown["prompt"]]
        also = [text for text in dict.fromkeys(shown["references"]) if text != shown["answer"]]
        lines.append(f"  answer: {shown['answer']!r}" + (f", also right: {', '.join(map(repr, also))}" if also else ""))
        if split in content["model"].get("rows", {}):
            seen = content["model"]["rows"][split]
            lines.append(f"  {content['model']['name']} gets {seen['tokens']} tokens: {seen['text']!r}")
    n_bad = sum(kind["rows"] for kind in content["bad"])
    lines.append(f"rows that cannot be used: {n_bad}" if n_bad else "every row can be used")
    lines += [f"  {kind['rows']}: {kind['reason']} ({', '.join(kind['ids'])})" for kind in content["bad"]]
    if n_bad:
        lines.append("  correct them, or set data.on_bad_row=skip data.bad_row_ceiling=1 to go on without them")
    return "\n".join(lines)
