"""Before the first step every row is read once, every image is decoded once beside what is encoded, and the list of
rows is hashed once."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from vlmft.config.schema import TrainConfig
from vlmft.data import images, rows
from vlmft.data.datasets.columns import Columns
from vlmft.data.ledger import Ledger
from vlmft.models.generic import GenericFamily
from vlmft.run import rows as run_rows
from vlmft.run.build import resolved
from vlmft.run.ready import build_for, check, keep_data
from vlmft.run.results import Phases
from vlmft.sample import EncodedRow, Prompt
from vlmft.training.interruption import StopRequest

pytestmark = pytest.mark.slow  # whole runs

N_ROWS = 56


@pytest.fixture(params=["files"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """56 rows, each with an image of its own: files, or "stored" in the rows."""
    chance, lines = np.random.default_rng(0), []
    for number in range(N_ROWS):
        pixels = chance.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        image = f"{number}.png"
        if request.param == "stored":
            image = f"data:image/png;base64,{base64.b64encode((tmp_path / image).read_bytes()).decode()}"
        lines.append({"image": image, "question": f"What is {number % 5}?", "answer": f"it is {number % 7}"})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return file


@dataclass(frozen=True)
class Counts:
    """How often each row was read, each image decoded and encoded, and how often the lists of rows were hashed."""

    read: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    encoded: Counter[str] = field(default_factory=Counter)
    hashed: list[Any] = field(default_factory=list)


@pytest.fixture
def started(
    table: Path, compose: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Counts]:
    """started("key=value", ...): what a start of train.py does before its first step."""
    monkeypatch.setenv("VLMFT_CACHE", str(tmp_path / "cache"))
    counts = Counts()
    read, decode, encode, manifest = Columns.read, images._decoded, GenericFamily.encode_prompt, run_rows.manifest

    def one_row(self: Columns, row_id: str) -> Any:
        counts.read[row_id] += 1
        return read(self, row_id)

    def one_image(stream: Any, name: str) -> PIL.Image.Image:
        counts.decoded[Path(name).name] += 1
        return decode(stream, name)

    def one_prompt(self: GenericFamily, row_id: str, prompt: Prompt) -> EncodedRow:
        counts.encoded[prompt.images[0].name] += 1
        return encode(self, row_id, prompt)

    monkeypatch.setattr(Columns, "read", one_row)
    monkeypatch.setattr(images, "_decoded", one_image)
    monkeypatch.setattr(GenericFamily, "encode_prompt", one_prompt)
    monkeypatch.setattr(run_rows, "manifest", lambda data: counts.hashed.append(data) or manifest(data))

    def start(*overrides: str) -> Counts:
        for count in (counts.read, counts.decoded, counts.encoded, counts.hashed):
            count.clear()
        small = ("model=tiny", "data=columns", f"data.path={table}", "data.val_rows=8", "data.test_rows=8")
        config = resolved(compose(*small, "logger=none", f"output_root={tmp_path}", *overrides)).config
        built = build_for(config, None, Ledger(None, config.data.on_bad_row, config.data.bad_row_ceiling), Phases())
        keep_data(check(config, built, tmp_path, Phases(), StopRequest()), tmp_path)
        return counts

    return start


def test_every_row_is_read_once_and_the_list_of_rows_hashed_once(started: Callable[..., Counts]) -> None:
    first = started()
    assert len(first.read) == N_ROWS and {*first.read.values()} == {1}
    assert len(first.hashed) == 1
    again = started()  # as for a resumed run: the manifest is there
    assert len(again.read) == N_ROWS and {*again.read.values()} == {1}
    assert len(again.hashed) == 1


def test_a_row_that_cannot_be_read_is_read_once(started: Callable[..., Counts], table: Path) -> None:
    table.write_text(table.read_text(encoding="utf-8").replace('"it is 3"', '""'), encoding="utf-8")
    read = started("data.on_bad_row=skip", "data.bad_row_ceiling=0.5").read
    assert len(read) == N_ROWS and {*read.values()} == {1}


def test_every_image_is_decoded_once_beside_what_is_encoded(started: Callable[..., Counts], table: Path) -> None:
    for file in table.parent.iterdir():
        os.utime(file, (1_700_000_000,) * 2)  # what changed just now is not trusted
    first = started("preflight=false")
    assert first.decoded == Counter(f"{number}.png" for number in range(N_ROWS)) + first.encoded
    again = started("preflight=false")
    assert again.decoded == again.encoded and again.encoded.total() == 16, "the rows of the memory estimate"


@pytest.mark.parametrize(("table", "limit"), [("files", "KEPT_ROWS"), ("stored", "KEPT_BYTES")], indirect=["table"])
def test_few_rows_stay_in_memory(
    table: Path, limit: str, started: Callable[..., Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million rows, or of large images, not all can be kept: with room for few the others are read again."""
    assert {*started("preflight=false").read.values()} == {1}
    monkeypatch.setenv("VLMFT_CACHE", str(table.parent / "other"))
    monkeypatch.setattr(rows, limit, 20)
    assert started("preflight=false").read.total() > N_ROWS
