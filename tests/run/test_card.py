"""The data card of small folders, number by number, under the two tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import pytest

from vlmft.config.schema import ModelConfig, TrainConfig
from vlmft.data import images
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.survey.survey import Survey, survey_splits
from vlmft.models.family import Family, make_family
from vlmft.models.load import load_source
from vlmft.run.card import CARD_FILE, SHEET_FILE, data_card, keep_card, read_card
from vlmft.run.present import print_card

SIZES = [(96, 96), (300, 100), (40, 200), (84, 84), (1000, 700), (57, 90)]
"""Width and height of the pictures 0.png, 1.png, ..."""
ROWS = [  # split, picture, question, answer
    *(("train", number, "What?", "a red cat") for number in range(3)),
    ("train", 0, "Why?", "because"),
    ("train", 0, "Why?", "because"),
    ("val", 3, "What?", "a red cat"),
    ("test", 4, "What?", "a dog"),
    ("test", 5, "What?", "a dog"),
]
TINY = ("tiny", "tiny_qwen2vl")


def picture(number: int) -> PIL.Image.Image:
    levels = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(levels).resize(SIZES[number], PIL.Image.Resampling.BICUBIC)


def write(folder: Path, rows: Iterable[tuple[str, Any, str, str]]) -> Path:
    """A folder that `data=columns` reads, with every picture that the rows name by number."""
    for number in range(len(SIZES)):
        picture(number).save(folder / f"{number}.png")
    for split in ("train", "val", "test"):
        lines = [
            json.dumps({"image": name if isinstance(name, str) else f"{name}.png", "question": asked, "answer": said})
            for where, name, asked, said in rows
            if where == split
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def families() -> Mapping[str, Family]:
    configs = {name: ModelConfig(name=name, path=f"package:{name}") for name in TINY}
    return {name: make_family(config, *load_source(config)) for name, config in configs.items()}


@pytest.fixture
def looked_at(compose: Callable[..., TrainConfig], families: Mapping[str, Family]) -> Callable[..., Survey]:
    """looked_at(folder): its rows, after the splits were checked."""

    def made(folder: Path) -> Survey:
        options = "data.options={image: image, question: question, answer: answer}"
        config = compose("data=columns", f"data.path={folder}", options).data
        ledger = Ledger(None, config.on_bad_row, config.bad_row_ceiling)
        data = VLMDataModule(make_dataset(config), config, families["tiny"].encode, ledger, 4, seed=0)
        return survey_splits(data)

    return made


def card_of(survey: Survey, family: Family, name: str) -> dict[str, Any]:
    return data_card(survey, family, family.image_tokens, name)


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoded: list[str] = []
    decode = images._decoded

    def counting(stream: BinaryIO, name: str) -> PIL.Image.Image:
        decoded.append(Path(name).name)
        return decode(stream, name)

    monkeypatch.setattr(images, "_decoded", counting)
    return decoded


def test_number_by_number(
    tmp_path: Path, looked_at: Any, families: Mapping[str, Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = decodings(monkeypatch)
    survey = looked_at(write(tmp_path, ROWS))
    card = card_of(survey, families["tiny_qwen2vl"], "tiny_qwen2vl")
    assert sorted(decoded) == [f"{number}.png" for number in range(6)], "each file once"
    assert (card["data"], card["model"], card["divided"]) == ("columns", "tiny_qwen2vl", [])
    train, val, test = (card["splits"][split] for split in ("train", "val", "test"))
    assert [train[key] for key in ("rows", "looked_at", "bad", "repeated", "images", "answers")] == [5, 5, 0, 1, 3, 2]
    assert train["questions_per_image"]["counts"] == {"1": 2, "3": 1} and train["questions_per_image"]["n"] == 3
    words = {"n": 5, "mean": 2.2, "min": 1, "median": 3, "p95": 3, "max": 3, "counts": {"1": 2, "3": 3}}
    assert train["answer_words"] == words
    assert train["top_answers"] == {"a red cat": 0.6, "because": 0.4}
    assert list(card["answers"]) == ["a red cat", "because", "a dog"]
    assert card["answers"]["a red cat"] == {"train": 0.6, "val": 1.0, "test": 0.0}
    assert (val["rows"], test["rows"], test["images"], test["visual_tokens"]["n"]) == (1, 2, 2, 2)
    assert {tuple(pair["splits"]): pair["images"] for pair in card["near_duplicates"]["between"]} == {
        ("train", "test"): 0,
        ("val", "test"): 0,
        ("train", "val"): 0,
    }
    json.dumps(card, allow_nan=False)


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_the_encoder(name: str, tmp_path: Path, looked_at: Any, families: Any) -> None:
    """Visual tokens are what the processor writes between the texts, counted in the encoded prompt; rows are whole."""
    survey, family = looked_at(write(tmp_path, ROWS)), families[name]
    tokenizer = family.processor.tokenizer
    marks = ("<image>", "<fake_token_around_image>", "<global-img>") if name == "tiny" else ("<|image_pad|>",)
    visual = set(tokenizer.convert_tokens_to_ids(list(marks)))
    assert len(visual) == len(marks)
    card, lengths = card_of(survey, family, name), {}
    for split in ("train", "val", "test"):
        rows = [family.encode(survey.rows.sample(row_id)) for row_id in survey.rows.ids[split]]
        different = {row.images[0].sha256: sum(int(i) in visual for i in row.input_ids) for row in rows}
        lengths.update({row.id: row.length for row in rows})
        spread = card["splits"][split]["visual_tokens"]
        assert sorted(different.values()) == [int(v) for v, n in spread["counts"].items() for _ in range(n)]
    fit = card["rows_that_fit"]
    assert sorted(lengths.values()) == [int(v) for v, n in fit["tokens"]["counts"].items() for _ in range(n)]
    assert (fit["looked_at"], fit["too_long"], fit["refused"], fit["first"]) == (8, 0, 0, None)
    assert fit["limit_tokens"] == 1024


def test_rows_that_do_not_fit_are_counted_and_one_is_named(tmp_path: Path, looked_at: Any, families: Any) -> None:
    rows = [*ROWS, ("train", 1, "word " * 2000, "long"), ("test", 5, "What is <end_of_utterance>?", "control")]
    survey = looked_at(write(tmp_path, rows))
    fit = card_of(survey, families["tiny"], "tiny")["rows_that_fit"]
    assert (fit["looked_at"], fit["too_long"], fit["refused"], fit["tokens"]["n"]) == (10, 1, 1, 8)
    assert fit["first"]["row"] == survey.rows.ids["train"][-1] and fit["first"]["reason"].endswith(" tokens")
    assert int(fit["first"]["reason"].split()[0]) > 2000


def test_near_duplicates_are_named_and_shown(
    tmp_path: Path, looked_at: Any, families: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "<again>.jpg"
    picture(1).resize((150, 50)).save(again, quality=50)
    survey = looked_at(write(tmp_path, [*ROWS, ("test", again.name, "What?", "a dog")]))
    card = card_of(survey, families["tiny"], "tiny")
    train_test = next(pair for pair in card["near_duplicates"]["between"] if pair["splits"] == ["train", "test"])
    assert train_test["images"] == 1
    (pair,) = train_test["pairs"]
    assert (pair["image"], pair["like_image"]) == (again.name, "1.png") and pair["distance"] <= 32
    run = tmp_path / "run"
    run.mkdir()
    decoded = decodings(monkeypatch)
    assert keep_card(card, survey, run) == run / SHEET_FILE
    assert sorted(decoded) == ["1.png", again.name], "only what is shown"
    page = (run / SHEET_FILE).read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and "&lt;again&gt;.jpg" in page and "<again>" not in page
    assert read_card(run, run) == {**card, "sheet": SHEET_FILE}
    assert (read_card(run, run / "evaluations" / "test") or {})["sheet"] == f"../../{SHEET_FILE}"
    print_card(card, 0, survey.rows.config)
    said = capsys.readouterr().out
    assert "near-duplicates: 1 image of test looks like one of train." in said
    assert "a dog (100.0 %)" in said and "overlap" not in said, "no news"
    print_card(card, 0, survey.rows.config, verbose=True)
    assert "overlap: none" in capsys.readouterr().out


def test_without_near_duplicates_there_is_no_sheet(tmp_path: Path, looked_at: Any, families: Any) -> None:
    survey = looked_at(write(tmp_path, ROWS))
    (tmp_path / SHEET_FILE).write_text("of a run that was interrupted")
    assert keep_card(card_of(survey, families["tiny"], "tiny"), survey, tmp_path) is None
    assert (tmp_path / CARD_FILE).is_file() and not (tmp_path / SHEET_FILE).exists()
    assert read_card(tmp_path / "elsewhere", tmp_path) is None
