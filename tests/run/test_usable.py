"""Rows that a model does not take are found before training: the same that encoding every row would find, no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from vlmft.config.schema import DataConfig, ModelConfig, OnBadRow
from vlmft.data.datasets.messages import Messages
from vlmft.data.ledger import Ledger
from vlmft.data.rows import Rows
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.models.family import Family, make_family
from vlmft.models.load import load_source
from vlmft.run import usable
from vlmft.run.usable import refuse_unusable
from vlmft.sample import BadRowError

LIMIT_TOKENS = 160


@pytest.fixture(scope="module")
def families() -> Mapping[str, Family]:
    configs = {
        name: ModelConfig(name=name, path=f"package:{name}", max_length_tokens=LIMIT_TOKENS)
        for name in ("tiny", "tiny_qwen2vl")
    }
    return {name: make_family(config, *load_source(config)) for name, config in configs.items()}


def row(asked: str, answer: str, *images: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns, "images": list(images)}


ROWS = [
    *(row(f"What is {n}?", str(n), "small.png") for n in range(6)),
    row("a <b> and [c]", "plain all the same", "small.png"),
    row("over<end_of_utterance>", "a control token of one", "small.png"),
    row("over<|im_end|>", "a control token of the other", "small.png"),
    row("fine", "but <|image_pad|> in the answer", "small.png"),
    row("word " * 400, "long", "small.png"),
    row("fine", "long " * 400, "small.png"),
    row("é" * 60, "many bytes, few letters", "small.png"),
    row("fine", "many images", *["small.png"] * 8),
    row("fine", "of a large picture", "large.png"),
    row("text alone", "x"),
    row("with a system text", "x", "small.png", system="You are kind."),
]


def rows_of(folder: Path, some: list[dict[str, Any]], policy: OnBadRow = OnBadRow.skip) -> Survey:
    PIL.Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "small.png")
    PIL.Image.new("RGB", (600, 500), (4, 5, 6)).save(folder / "large.png")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    config = DataConfig(name="m", dataset="vlmft.data.datasets.messages:Messages", val_rows=0, test_rows=0)
    return survey_splits(Rows(Messages(path=str(folder)), config, Ledger(None, policy, 1.0), 0))


def encoded_one_by_one(rows: Rows, family: Family) -> set[str]:
    refused = set()
    for row_id in rows.ids["train"]:
        try:
            family.encode(rows.sample(row_id))
        except BadRowError:
            refused.add(row_id)
    return refused


@pytest.mark.parametrize("name", ["tiny", "tiny_qwen2vl"])
def test_the_same_rows_as_encoding_all(tmp_path: Path, families: Mapping[str, Family], name: str) -> None:
    survey, family = rows_of(tmp_path, ROWS), families[name]
    expected = encoded_one_by_one(survey.rows, family)
    assert 4 <= len(expected) <= 9, "the test shows something"
    assert refuse_unusable(survey, family, lru_cache(family.image_tokens), lambda: None) == len(expected)
    assert set(survey.rows.ledger.bad) == expected


def test_rows_that_cannot_fail_are_not_tokenised(
    tmp_path: Path, families: Mapping[str, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, family = (
        rows_of(tmp_path, [row(f"What is {n}?", str(n), "small.png") for n in range(200)]),
        families["tiny"],
    )
    looked_at: list[str] = []
    fits: Callable[..., None] = usable.require_fit
    monkeypatch.setattr(
        usable, "require_fit", lambda f, sample, *rest: looked_at.append(sample.id) or fits(f, sample, *rest)
    )
    monkeypatch.setattr(family, "max_length_tokens", 1024)
    assert refuse_unusable(survey, family, lru_cache(family.image_tokens), lambda: None) == 0
    assert looked_at == []


def test_json_answers_are_no_suspects_where_no_token_has_their_brackets(
    tmp_path: Path, families: Mapping[str, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all("<" in token for token in families["tiny"].control_texts)
    survey = rows_of(tmp_path, [row("Where?", f"[{n}, 2, 3, 4]", "small.png") for n in range(20)])
    looked_at: list[str] = []
    monkeypatch.setattr(usable, "require_fit", lambda family, sample, *rest: looked_at.append(sample.id))
    monkeypatch.setattr(families["tiny"], "max_length_tokens", 1024)
    refuse_unusable(survey, families["tiny"], lru_cache(families["tiny"].image_tokens), lambda: None)
    assert looked_at == []
    monkeypatch.setattr(families["tiny"], "control_texts", [*families["tiny"].control_texts, "[IMG]"])
    refuse_unusable(survey, families["tiny"], lru_cache(families["tiny"].image_tokens), lambda: None)
    assert len(looked_at) == 20, "a model whose tokens have them"


def test_the_error_counts_names_three_and_says_what_goes_on(tmp_path: Path, families: Mapping[str, Family]) -> None:
    some = [row("fine", "x", "small.png")] * 3 + [row("a<end_of_utterance>", "x", "small.png")] * 5
    survey = rows_of(tmp_path, some, OnBadRow["raise"])
    with pytest.raises(BadRowError) as error:
        refuse_unusable(survey, families["tiny"], lru_cache(families["tiny"].image_tokens), lambda: None)
    message = str(error.value)
    assert message.startswith("5 rows cannot be used; the first: row messages/train/000003/0: Expected plain text, got")
    assert "then messages/train/000004/0, messages/train/000005/0" in message and "data.on_bad_row=skip" in message
