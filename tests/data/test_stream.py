"""Rows that are read as they come: every row once an epoch, the same windows after a stop, nothing that is held out."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest

from vlmft.config.check import ConfigError
from vlmft.config.schema import DataConfig
from vlmft.data.datamodule import VLMDataModule
from vlmft.data.ledger import Ledger
from vlmft.data.make import make_dataset
from vlmft.data.rows import Rows
from vlmft.data.sources import streams
from vlmft.data.sources.parquet_rows import ParquetRows
from vlmft.data.stream import LeftOut, Mark, WindowStream, shown_in
from vlmft.sample import BadRow, BadRowError, Message, Prompt, Sample

ROOT = Path(__file__).resolve().parents[2]
ROWS, STEP = 47, 4


class Reader:
    """Counts rows; its state is the next one."""

    def __init__(self, state: Mapping[str, Any] | None) -> None:
        self.next = 0 if state is None else state["next"]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def __iter__(self) -> Iterator[int]:
        while self.next < ROWS:
            self.next += 1
            yield self.next - 1


class Numbers:
    """A row is its number; 5 cannot be used, and 7 and 11 ask what a held-out row asks."""

    def training_rows(self, state: Mapping[str, Any] | None) -> tuple[Any, Iterator[Any]]:
        reader = Reader(state)
        return reader, iter(reader)

    def streamed_id(self, number: int) -> str:
        return str(number)

    def record_of(self, row: Any, row_id: str) -> Any:
        assert str(row) == row_id
        return {"number": row}

    def to_sample(self, record: Mapping[str, Any]) -> Sample:
        number = record["number"]
        if number == 5:
            raise BadRowError("five")
        asked = "held out" if number in (7, 11) else f"row {number}"
        return Sample(str(number), Prompt((Message("user", (asked,)),)), "a", ("a",))


def encode(sample: Sample) -> Any:
    return sample.id


HELD_OUT = shown_in(Sample("t", Prompt((Message("user", ("held out",)),)), "b", ("b",)))


def stream(rank: int = 0, n_ranks: int = 1, mark: Mark = Mark(), trained: int = 0) -> WindowStream:  # noqa: B008
    return WindowStream(Numbers(), encode, STEP, 10, 3, (rank, n_ranks), HELD_OUT, mark, trained)  # type: ignore[arg-type]


def windows(of: WindowStream, n: int) -> list[list[Any]]:
    return [window.rows for window in itertools.islice(of, n)]


def test_every_row_comes_once_an_epoch_in_another_order() -> None:
    per_epoch = 12  # blocks of 8 rows, two windows each; the last of 7 rows
    found = windows(stream(), 2 * per_epoch)
    epochs = [list(itertools.chain(*found[:per_epoch])), list(itertools.chain(*found[per_epoch:]))]
    for epoch in epochs:
        ids = [row if isinstance(row, str) else row.id for row in epoch]
        assert sorted(map(int, ids)) == list(range(ROWS))
        assert [row.id for row in epoch if isinstance(row, BadRow)] == ["5"]
        assert sorted(row.id for row in epoch if isinstance(row, LeftOut)) == ["11", "7"]
    assert epochs[0] != epochs[1]
    assert {len(window) for window in found} == {STEP, 3}


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_have_all_rows_of_each_window(n_ranks: int) -> None:
    hands = [windows(stream(rank, n_ranks), 30) for rank in range(n_ranks)]
    for window, shares in zip(windows(stream(), 30), zip(*hands, strict=True), strict=True):
        assert sorted(map(str, itertools.chain(*shares))) == sorted(map(str, window))


def test_a_run_goes_on_with_the_same_windows_wherever_it_stops() -> None:
    whole = windows(stream(), 40)
    for trained in range(30):
        prepared = list(itertools.islice(stream(), trained + 2))  # two have been prepared and not trained
        mark = Mark() if trained == 0 else prepared[trained - 1].mark
        mark = Mark(**json.loads(json.dumps(mark.to_dict())))
        assert mark.window <= trained <= mark.window + 3
        assert windows(stream(mark=mark, trained=trained), 8) == whole[trained : trained + 8]


def test_without_training_rows_the_stream_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROWS", 0)
    with pytest.raises(ConfigError, match="Expected training rows behind those that are held out"):
        windows(stream(), 1)


def picture(shade: int) -> bytes:
    stored = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (shade % 256, shade // 256, 9)).save(stored, "PNG")
    return stored.getvalue()


def rows(first: int, n: int) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": picture(i), "path": None}, "question": f"What is {i}?", "answer": str(i)}
        for i in range(first, first + n)
    ]


TYPES = datasets.Features({"image": datasets.Image(), **{c: datasets.Value("string") for c in ("question", "answer")}})


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for split, content in splits.items():
        datasets.Dataset.from_list(content, features=TYPES).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def config(path: Path, **more: Any) -> DataConfig:
    columns = "vlmft.data.datasets.columns:Columns"
    return DataConfig(name="columns", dataset=columns, path=str(path), streaming=True, **more)


def ids_of(dataset: Any) -> dict[str, list[str]]:
    return {split: list(ids) for split, ids in dataset.index().items()}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOOKED_AT", 10)
    monkeypatch.setattr(streams, "HELD_OUT", 3)


def test_declared_splits_of_parquet_are_looked_at_and_train_goes_on(few: None, tmp_path: Path) -> None:
    folder = write(tmp_path, train=rows(0, 25), validation=rows(100, 4), test=rows(200, 30))
    dataset: Any = make_dataset(config(folder))
    assert {split: len(ids) for split, ids in ids_of(dataset).items()} == {"train": 10, "val": 4, "test": 10}
    reader, found = dataset.training_rows(None)
    some = enumerate(itertools.islice(found, 7))
    first = [dataset.to_sample(dataset.record_of(row, dataset.streamed_id(n))) for n, row in some]
    assert [sample.answer for sample in first] == list(map(str, range(7)))
    state = json.loads(json.dumps(reader.state_dict()))
    _, others = dataset.training_rows(state)
    assert [row["answer"] for row in others] == list(map(str, range(7, 25)))
    looked_at = dataset.to_sample(dataset.read("columns/train/000006"))
    assert (looked_at.prompt.sha256, looked_at.id) == (first[6].prompt.sha256, first[6].id)
    notes = " ".join(dataset.describe().notes)
    assert "train is a stream, of which 10 rows were looked at" in notes
    rows_made = Rows(dataset, config(folder), Ledger(None, config(folder).on_bad_row, 0.01), 0)
    assert rows_made.divided == ()


def test_splits_that_are_lacking_are_the_first_rows_and_are_not_trained_on(few: None, tmp_path: Path) -> None:
    dataset: Any = make_dataset(config(write(tmp_path, train=rows(0, 25)) / "train.parquet"))
    answers = {
        split: [dataset.to_sample(dataset.read(row_id)).answer for row_id in ids]
        for split, ids in ids_of(dataset).items()
    }
    assert answers == {
        "test": ["0", "1", "2"],
        "val": ["3", "4", "5"],
        "train": [str(number) for number in range(6, 16)],
    }
    _, found = dataset.training_rows(None)
    assert [row["answer"] for row in found] == list(map(str, range(6, 25)))
    assert sum("is the first 3 rows that were left of train" in note for note in dataset.describe().notes) == 2


def test_parquet_rows_go_on_at_any_row_of_any_file(tmp_path: Path) -> None:
    for number, n_rows in enumerate((7, 1, 10)):
        content = datasets.Dataset.from_list([{"n": 100 * number + row} for row in range(n_rows)])
        content.to_parquet(str(tmp_path / f"{number}.parquet"), batch_size=3)
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    whole = [row["n"] for row in ParquetRows(files)]
    assert whole == [*range(7), 100, *range(200, 210)]
    assert [row["n"] for row in ParquetRows(files).take(3)] == whole[:3]
    for skipped, read in itertools.product(range(19), range(4)):
        first = ParquetRows(files).skip(skipped)
        assert [row["n"] for row in itertools.islice(first, read)] == whole[skipped : skipped + read]
        second = ParquetRows(files)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [row["n"] for row in second] == whole[skipped + read :]
        assert [row["n"] for row in ParquetRows(files).skip(skipped).take(4)] == whole[skipped : skipped + 4]


def as_it_is(sample: Sample) -> Any:
    return sample


def test_another_fit_of_the_same_object_begins_at_the_beginning(tmp_path: Path) -> None:
    of = config(write(tmp_path, train=rows(0, 40), validation=rows(100, 4), test=rows(200, 4)), block_rows=8)
    data = VLMDataModule(make_dataset(of), of, as_it_is, Ledger(None, of.on_bad_row, 0.01), STEP, 3)

    def some_windows() -> list[list[str]]:
        prepared = itertools.islice(data.train_dataloader(), 5)
        return [[row.id for row in data.on_before_batch_transfer(window, 0)] for window in prepared]

    first = some_windows()
    assert data.mark.window == 4 and len(set(itertools.chain(*first))) == 5 * STEP
    assert some_windows() == first


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_files_with_names_of_images(suffix: str, few: None, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    table = [{"image": f"{n}.png", "question": f"What is {n}?", "answer": f"a{n}"} for n in range(12)]
    if suffix == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in table)
    else:
        text = "image,question,answer\n" + "".join(",".join(row.values()) + "\n" for row in table)
    (tmp_path / f"rows.{suffix}").write_text(text)
    dataset: Any = make_dataset(config(tmp_path / f"rows.{suffix}"))
    _, found = dataset.training_rows(None)
    row = next(found)
    sample = dataset.to_sample(dataset.record_of(row, dataset.streamed_id(0)))
    assert sample.answer == "a6" and sample.prompt.images[0].pixels[0, 0].tolist() == [6, 0, 9]


def test_what_takes_all_rows_is_refused(compose: Callable[..., Any], few: None, tmp_path: Path) -> None:
    end = ("data=columns", "data.streaming=true", "trainer.max_steps=4", "data.path=x")
    for setting, said in {
        "data.limit_train=5": "data.limit_train: Expected None beside data.streaming, got 5",
        "data.group_by_image=true": "data.group_by_image: Expected False beside data.streaming",
        "data.test_rows=7": "data.test_rows: Expected 0.2 beside data.streaming, got 7",
        "trainer.max_steps=-1": "trainer.max_steps: Expected the end of training beside data.streaming",
    }.items():
        with pytest.raises(ConfigError, match=said):
            compose(*end, setting)
    with pytest.raises(ConfigError, match="Shapes has all rows at once"):
        make_dataset(compose("data=shapes", *end[1:3]).data)
    with pytest.raises(ConfigError, match=r"Expected no where and no images beside data\.streaming"):
        make_dataset(config(write(tmp_path, train=rows(0, 9)), options={"where": {"answer": "1"}})).index()
    with pytest.raises(ConfigError, match="cannot be streamed"):
        make_dataset(config(tmp_path / "no/such")).index()
    divided = [{**row, "split": "test" if n % 3 else "train"} for n, row in enumerate(rows(0, 9))]
    (tmp_path / "s").mkdir()
    types = datasets.Features({**TYPES, "split": datasets.Value("string")})
    datasets.Dataset.from_list(divided, features=types).to_parquet(str(tmp_path / "s/all.parquet"))
    with pytest.raises(ConfigError, match="Expected splits by the names of files or of the Hub, got a column 'split'"):
        make_dataset(config(tmp_path / "s/all.parquet")).index()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_a_stream_that_is_killed_ends_with_the_same_bytes(workers: int, tmp_path: Path) -> None:
    write(tmp_path, train=rows(0, 60), validation=rows(100, 6), test=rows(110, 6))
    settings = [
        "model=tiny", "data=columns", f"data.path={tmp_path}", "data.streaming=true", "data.block_rows=16",
        "trainer.max_steps=24", "train.rows_per_step=4", "trainer.val_check_interval=5", "trainer.log_every_n_steps=1",
        "trainer.accelerator=cpu", "evaluation.canary_rows=2", "evaluation.arms=[tuned]", "preflight=false", "name=run",
        "logger=none", "model.lora.dropout=0.1", f"data.workers={workers}",
    ]  # fmt: skip

    def command(root: str, *more: str) -> list[str]:
        return [sys.executable, "train.py", *settings, f"output_root={tmp_path / root}", *more]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command("whole"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    whole, broken = (tmp_path / root / "tiny-columns/run" for root in ("whole", "broken"))
    with subprocess.Popen(
        command("broken"), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        waited_until = time.monotonic() + 300
        while time.monotonic() < waited_until and len(list(broken.glob("checkpoints/step-*"))) < 2:
            time.sleep(0.01)
        process.kill()
    again = subprocess.run(
        command("broken", "resume=true"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert again.returncode == 0, again.stderr
    assert "going on from step-" in again.stdout
    for file in ("adapter/adapter_model.safetensors", "predictions/tuned.jsonl"):
        assert (whole / file).read_bytes() == (broken / file).read_bytes()
